"""A uniform sample of a corpus's lines, of bounded size, for training a tokenizer.

Every line (a chunk of one, where it is long) draws a hash of its place in the corpus and the seed; the lines with the
smallest hashes that fit the size are kept. One pass, no need to know the corpus's size, and a pure function of the
corpus and the seed. Memory is the sample's size.

Used by: build_corpus.py. Tested by: tests/data_prep/test_sample_text.py.
"""

import heapq
import struct

import xxhash

from disentangled.data_prep.encode_text import chunk_text

# SentencePiece's trainer drops lines of more than 4,192 bytes; a character takes at most 4
MAX_LINE_CHARACTERS = 1024


class TextSample:
    """Lines kept so far. Once a hash has been turned away, every larger one is, so what is kept is always the
    set of smallest hashes and does not depend on the lines' lengths."""

    def __init__(self, max_bytes: int, seed: int) -> None:
        self._max_bytes = max_bytes
        self._seed = seed
        self._num_offered = 0
        self._num_bytes = 0
        self._largest_kept = 1 << 64
        self._heap: list[tuple[int, int, str]] = []

    def offer(self, text: str) -> None:
        """Draw for each line of a document."""
        for line in text.split("\n"):
            for chunk in chunk_text(line, MAX_LINE_CHARACTERS):
                if chunk and not chunk.isspace():
                    self._offer_line(chunk)

    def lines(self) -> list[str]:
        """Return the lines kept, in the order of the corpus."""
        return [text for _, _, text in sorted(self._heap, key=lambda entry: entry[1])]

    def _offer_line(self, text: str) -> None:
        place = self._num_offered
        self._num_offered += 1
        digest = xxhash.xxh3_64_intdigest(struct.pack("<Q", place), seed=self._seed)
        if digest >= self._largest_kept:
            return
        heapq.heappush(self._heap, (-digest, place, text))
        self._num_bytes += len(text.encode())
        while self._num_bytes > self._max_bytes:
            negative_digest, _, dropped = heapq.heappop(self._heap)
            self._largest_kept = -negative_digest
            self._num_bytes -= len(dropped.encode())
