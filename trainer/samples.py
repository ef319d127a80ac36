"""What a trained pair does to a few sentences, as lines of text.

What: for held-out sentences, the generator's likeliest pieces at a masked word; for a longer one that the generator
corrupted, the tokens that the discriminator suspects most. Fixed seed, so the same run shows the same lines.
Used by: trainer/demo.py. Tested by tests/trainer/test_samples.py.
"""

from pathlib import Path

import sentencepiece
import torch
from torch import Tensor

from disentangled.data_prep.shard_schema import TOKENIZER_NAME, Manifest, load_manifest, open_shard
from disentangled.kernels.counter_rng import Stream
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator, Sampling, banned_ids
from disentangled.model.layout import padded_layout
from disentangled.trainer.export import load_trained_pair
from disentangled.trainer.word_starts import WORD_START

NUM_SENTENCES = 5
NUM_GUESSES = 3
NUM_DOCUMENTS, NUM_DOCUMENT_TOKENS = 1000, 10_000  # as far as one looks for them
SHORT_TOKENS = range(10, 24)  # short enough for a narrow terminal, long enough to give context
LONG_TOKENS = range(30, 61)
MASK_EVERY_TOKENS = 5
NOTHING_FITS = "(the held-out text has no sentence of a fitting length to show)"


def show_samples(run_dir: Path, shards: Path) -> None:
    """Print masked sentences with guesses, then a corrupted one with suspicions."""
    manifest = load_manifest(shards)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(shards / TOKENIZER_NAME))
    generator, discriminator = load_trained_pair(run_dir)
    short = find_sentences(shards, manifest, pieces, SHORT_TOKENS)
    print("Held-out sentences, one word masked, and the generator's guesses:" if short else NOTHING_FITS)
    for sentence in short:
        place = word_to_mask(sentence, pieces)
        guesses = guess_pieces(generator, manifest, sentence, place)
        shown = pieces.decode(sentence[:place]) + " [MASK]" + _text_after(pieces, sentence[place + 1 :])
        guessed = ", ".join(_piece_text(pieces, guess) for guess in guesses)
        print(f"  {shown.strip()}\n    was {_piece_text(pieces, sentence[place])}; guessed {guessed}")
    for sentence in find_sentences(shards, manifest, pieces, LONG_TOKENS)[:1]:
        print("\nA sentence that the generator corrupted, [original>replacement], and the discriminator's marks (*):")
        print("\n".join(corrupt_and_judge(generator, discriminator, manifest, pieces, sentence)))


def find_sentences(
    shards: Path, manifest: Manifest, pieces: sentencepiece.SentencePieceProcessor, num_tokens: range
) -> list[list[int]]:
    """The ids of up to NUM_SENTENCES held-out sentences of so many tokens, taken at even distances."""
    found = []
    for record in manifest.splits["validation"]:
        shard = open_shard(shards, record)
        for document in range(min(record.num_documents, NUM_DOCUMENTS)):
            ids = shard.tokens[shard.offsets[document] : shard.offsets[document + 1]][:NUM_DOCUMENT_TOKENS].tolist()
            for sentence in pieces.decode(ids).replace("\n", " ").split(". "):
                encoded = pieces.encode(sentence.strip() + ".")
                if len(encoded) in num_tokens and is_prose(sentence.strip()):
                    found.append(encoded)
    return found[:: max(1, len(found) // NUM_SENTENCES)][:NUM_SENTENCES]


def is_prose(sentence: str) -> bool:
    """Whether a sentence is made of words: no code, no tables."""
    return not sentence[:1].islower() and all(c.isalpha() or c in " ,'-\u2019" for c in sentence)


def word_to_mask(sentence: list[int], pieces: sentencepiece.SentencePieceProcessor) -> int:
    """The longest whole word in the sentence's second half: a place with context."""
    candidates = [
        place
        for place in range(len(sentence) // 2, len(sentence) - 1)
        if pieces.id_to_piece(sentence[place]).startswith(WORD_START)
        and pieces.id_to_piece(sentence[place + 1]).startswith((WORD_START, "."))
    ]
    return max(candidates or [len(sentence) // 2], key=lambda place: len(pieces.id_to_piece(sentence[place])))


@torch.no_grad()
def guess_pieces(generator: Generator, manifest: Manifest, sentence: list[int], place: int) -> list[int]:
    """The likeliest NUM_GUESSES ids at `place` of a sentence."""
    special = manifest.special_ids
    ids = torch.tensor([special.cls, *sentence, special.sep])
    ids[place + 1] = special.mask
    layout = padded_layout(torch.ones(1, len(ids)))
    logits = generator.masked_logits(ids, layout, torch.tensor([place + 1]))
    guesses: list[int] = (
        logits[0].masked_fill(_banned(generator, manifest), -torch.inf).topk(NUM_GUESSES).indices.tolist()
    )
    return guesses


@torch.no_grad()
def corrupt_and_judge(
    generator: Generator,
    discriminator: Discriminator,
    manifest: Manifest,
    pieces: sentencepiece.SentencePieceProcessor,
    sentence: list[int],
) -> list[str]:
    """The sentence with replacements and marks, and how many of the marks are right."""
    special = manifest.special_ids
    ids = torch.tensor([special.cls, *sentence, special.sep])
    layout = padded_layout(torch.ones(1, len(ids)))
    masked = torch.arange(2, len(sentence), MASK_EVERY_TOKENS)
    sampling = Sampling(1, Stream.EVALUATION_REPLACEMENT, _banned(generator, manifest))
    corrupted = generator(ids, layout, masked, None, sampling).corrupted_ids
    rows = None if discriminator.embedding_sharing == "nes" else generator.word_embeddings[corrupted]
    logits = discriminator(corrupted, ids, layout, None, rows).logits[1:-1]
    is_replaced = (corrupted != ids)[1:-1]
    num_replaced = int(is_replaced.sum())
    suspected = torch.zeros_like(is_replaced).index_fill(0, logits.topk(num_replaced).indices, True)
    text = ""
    for original, given, is_suspected in zip(sentence, corrupted.tolist()[1:-1], suspected.tolist(), strict=True):
        shown = _piece_text(pieces, given)
        if original != given:
            shown = f"[{_piece_text(pieces, original)}>{shown}]"
        space = " " if pieces.id_to_piece(original).startswith(WORD_START) else ""
        text += space + shown + ("*" if is_suspected else "")
    hits, by_chance = int((suspected & is_replaced).sum()), num_replaced**2 / len(sentence)
    return [
        f"  {text.strip()}",
        f"    {hits} of the {num_replaced} most suspected tokens were replaced; by chance {by_chance:.1f} would be",
    ]


def _banned(generator: Generator, manifest: Manifest) -> Tensor:
    special = manifest.special_ids
    ids = (special.pad, special.cls, special.sep, special.unk, special.mask)
    return banned_ids(generator.config.vocab_size, manifest.num_pieces, ids, torch.device("cpu"))


def _piece_text(pieces: sentencepiece.SentencePieceProcessor, piece: int) -> str:
    return str(pieces.id_to_piece(piece)).removeprefix(WORD_START) if piece < len(pieces) else "[MASK]"


def _text_after(pieces: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    space = " " if ids and pieces.id_to_piece(ids[0]).startswith(WORD_START) else ""
    return space + str(pieces.decode(ids))
