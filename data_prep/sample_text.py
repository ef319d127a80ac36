"""A uniform sample of a source's lines, of bounded size, for training a tokenizer.

Every line (a chunk of one, where it is long) draws a hash of its place in the inputs and the seed; the lines with the
smallest hashes that fit the size are kept. One pass, no need to know the source's size, and a pure function of the
text and the seed: samples of parts, drawn by different processes, add up to the sample of the whole. Memory is the
sample's size.

Used by: scan_unit.py, prepare_text.py. Tested by: tests/data_prep/test_sample_text.py.
Not here: how the bytes are shared out among sources (share_sample.py).
"""

import heapq
import struct
from collections.abc import Callable

import xxhash

from disentangled.data_prep.encode_text import chunk_text

# SentencePiece's trainer drops lines of more than 4,192 bytes; a character takes at most 4
MAX_LINE_CHARACTERS = 1024

# (file, first byte or row, piece of what is there) of a document, (that, number of the line in it) of a line
DocumentPlace = tuple[int, int, int]
LinePlace = tuple[int, int, int, int]


class TextSample:
    """Lines kept so far. Once a hash has been turned away, every larger one is, so what is kept is always the
    set of smallest hashes and does not depend on the lines' lengths."""

    def __init__(self, max_bytes: int, seed: int) -> None:
        self._max_bytes = max_bytes
        self._seed = seed
        self._num_bytes = 0
        self._smallest_dropped = 1 << 64
        # (-hash of the line's place, place, hash that splits its document, line): the largest hash comes out first
        self._heap: list[tuple[int, LinePlace, int, str]] = []

    def offer(self, text: str, place: DocumentPlace, document_hash: int) -> None:
        """Draw for each line of a document; document_hash is kept beside its lines."""
        number = 0
        for line in text.split("\n"):
            for chunk in chunk_text(line, MAX_LINE_CHARACTERS):
                if chunk and not chunk.isspace():
                    drawn = xxhash.xxh3_64_intdigest(struct.pack("<QQQQ", *place, number), seed=self._seed)
                    self._keep((-drawn, (*place, number), document_hash, chunk))
                    number += 1

    def absorb(self, other: "TextSample") -> None:
        """Take in the sample of another part of the source."""
        self._smallest_dropped = min(self._smallest_dropped, other._smallest_dropped)
        while self._heap and -self._heap[0][0] >= self._smallest_dropped:
            self._drop()
        for entry in other._heap:
            self._keep(entry)

    def remove(self, is_unwanted: Callable[[DocumentPlace, int], bool]) -> None:
        """Drop the lines of the documents of which place and hash say so."""
        self._heap = [entry for entry in self._heap if not is_unwanted(entry[1][:3], entry[2])]
        heapq.heapify(self._heap)
        self._num_bytes = sum(len(entry[3].encode()) for entry in self._heap)

    def shrink(self, max_bytes: int) -> None:
        """Keep no more than max_bytes."""
        self._max_bytes = min(self._max_bytes, max_bytes)
        while self._num_bytes > self._max_bytes:
            self._drop()

    @property
    def num_bytes(self) -> int:
        """The size of the lines kept, in UTF-8."""
        return self._num_bytes

    def lines(self) -> list[str]:
        """Return the lines kept, in the order of the inputs."""
        return [text for _, _, _, text in sorted(self._heap, key=lambda entry: entry[1])]

    def _keep(self, entry: tuple[int, LinePlace, int, str]) -> None:
        if -entry[0] >= self._smallest_dropped:
            return
        heapq.heappush(self._heap, entry)
        self._num_bytes += len(entry[3].encode())
        while self._num_bytes > self._max_bytes:
            self._drop()

    def _drop(self) -> None:
        """Turn the largest hash away, and with it all that are not smaller."""
        negative, _, _, text = heapq.heappop(self._heap)
        self._smallest_dropped = min(self._smallest_dropped, -negative)
        self._num_bytes -= len(text.encode())
