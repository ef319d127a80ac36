"""What a trained pair does to a few sentences, as lines of text.

What: for held-out sentences, the generator's likeliest pieces at a masked word; for one sentence that the generator
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

NUM_SENTENCES = 5
NUM_GUESSES = 3
SENTENCE_TOKENS = range(10, 24)  # short enough for a narrow terminal, long enough to give context
CORRUPTED_SHARE = 0.2
WORD_START = "\u2581"


def show_samples(run_dir: Path, shards: Path) -> None:
    """Print masked sentences with guesses, then a corrupted one with suspicions."""
    manifest = load_manifest(shards)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(shards / TOKENIZER_NAME))
    generator, discriminator = load_trained_pair(run_dir)
    sentences = find_sentences(shards, manifest, pieces)
    if not sentences:
        print("(no held-out sentence of a fitting length to show)")
        return
    print("Held-out sentences, one word masked, and the generator's guesses:")
    for sentence in sentences:
        place = word_to_mask(sentence, pieces)
        guesses = guess_pieces(generator, manifest, sentence, place)
        shown = pieces.decode(sentence[:place]) + " [MASK]" + _text_after(pieces, sentence[place + 1 :])
        guessed = ", ".join(_piece_text(pieces, guess) for guess in guesses)
        print(f"  {shown.strip()}\n    was {_piece_text(pieces, sentence[place])}; guessed {guessed}")
    print(
        "\nA sentence that the generator corrupted, [original>replacement], and the tokens the discriminator suspects:"
    )
    print("\n".join(f"  {line}" for line in corrupt_and_judge(generator, discriminator, manifest, pieces, sentences)))


def find_sentences(shards: Path, manifest: Manifest, pieces: sentencepiece.SentencePieceProcessor) -> list[list[int]]:
    """The ids of NUM_SENTENCES held-out sentences, taken at even distances."""
    found = []
    for record in manifest.splits["validation"]:
        shard = open_shard(shards, record)
        for document in range(record.num_documents):
            ids = shard.tokens[shard.offsets[document] : shard.offsets[document + 1]].tolist()
            for sentence in pieces.decode(ids).replace("\n", " ").split(". "):
                encoded = pieces.encode(sentence.strip() + ".")
                if len(encoded) in SENTENCE_TOKENS and sentence.strip()[:1].isupper():
                    found.append(encoded)
    return found[:: max(1, len(found) // NUM_SENTENCES)][:NUM_SENTENCES]


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
    sentences: list[list[int]],
) -> list[str]:
    """Two lines: the first sentence in which a token was replaced, with its replacements and with the marks."""
    special = manifest.special_ids
    for number, sentence in enumerate(sentences):
        ids = torch.tensor([special.cls, *sentence, special.sep])
        layout = padded_layout(torch.ones(1, len(ids)), sample=torch.tensor([number]))
        masked = torch.arange(2, len(sentence), round(1 / CORRUPTED_SHARE))
        sampling = Sampling(1, Stream.EVALUATION_REPLACEMENT, _banned(generator, manifest))
        corrupted = generator(ids, layout, masked, None, sampling).corrupted_ids
        rows = None if discriminator.embedding_sharing == "nes" else generator.word_embeddings[corrupted]
        judged = discriminator(corrupted, ids, layout, None, rows)
        num_replaced = int(judged.is_replaced.sum())
        if num_replaced:
            suspected = judged.logits.masked_fill(ids == special.cls, -torch.inf).topk(num_replaced).indices
            return _marked_lines(ids, corrupted, suspected, pieces)
    return ["(the generator guessed every masked token right: nothing was replaced)"]


def _marked_lines(
    ids: Tensor, corrupted: Tensor, suspected: Tensor, pieces: sentencepiece.SentencePieceProcessor
) -> list[str]:
    shown = []
    for original, given in zip(ids.tolist()[1:-1], corrupted.tolist()[1:-1], strict=True):
        text = _piece_text(pieces, given)
        space = " " if pieces.id_to_piece(original).startswith(WORD_START) else ""
        shown.append(space + (text if original == given else f"[{_piece_text(pieces, original)}>{text}]"))
    hits = int((ids != corrupted)[suspected].sum())
    names = ", ".join(_piece_text(pieces, int(corrupted[place])) for place in sorted(suspected.tolist()))
    return ["".join(shown).strip(), f"  suspected: {names} ({hits} of {len(suspected)} right)"]


def _banned(generator: Generator, manifest: Manifest) -> Tensor:
    special = manifest.special_ids
    ids = (special.pad, special.cls, special.sep, special.unk, special.mask)
    return banned_ids(generator.config.vocab_size, manifest.num_pieces, ids, torch.device("cpu"))


def _piece_text(pieces: sentencepiece.SentencePieceProcessor, piece: int) -> str:
    return str(pieces.id_to_piece(piece)).removeprefix(WORD_START) if piece < len(pieces) else "[MASK]"


def _text_after(pieces: sentencepiece.SentencePieceProcessor, ids: list[int]) -> str:
    space = " " if ids and pieces.id_to_piece(ids[0]).startswith(WORD_START) else ""
    return space + str(pieces.decode(ids))
