"""Part c: which tokens of a [64, 512] batch become targets, uniformly and by whole words.

Every masker gets the same rows in the form that it takes (ids, or pieces), made beforehand, and gives corrupted ids and
labels. Those of Megatron-LM, DeBERTa and ModernBERT are their own, run from a clone.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import bisect
import functools
import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import sentencepiece as spm
from numpy.typing import NDArray

from benchmarks.data import megatron, our_data, our_preparation
from benchmarks.data.lift import lift_definitions, lift_modernbert
from benchmarks.data.rounds import Call, Row, measure_case
from benchmarks.data.text import Text
from disentangled.data_prep.shard_schema import SpecialIds

ROWS, TOKENS = 64, 512
PROBABILITY = 0.15
SPACE_SYMBOL = "\u2581"
NUM_WARM_BATCHES = 4  # the rows differ from call to call


@dataclass(frozen=True)
class Batches:
    """Rows to mask: ids [batches, 64, 512] int64 with [CLS] and [SEP] at the ends, and what is known of the pieces."""

    ids: NDArray[np.int64]
    special: SpecialIds
    pieces: list[str]
    starts_word: NDArray[np.bool_]
    text: Text


def make_batches(flat: NDArray[Any], text: Text) -> Batches:
    """Consecutive runs of a flat array of tokens."""
    special = our_preparation.special_ids(text.tokenizer)
    processor = spm.SentencePieceProcessor(model_file=str(text.tokenizer))
    pieces = [processor.id_to_piece(index) for index in range(processor.get_piece_size())] + ["[MASK]"]
    wanted = NUM_WARM_BATCHES * ROWS * (TOKENS - 2)
    inner = np.resize(flat[:wanted], wanted).astype(np.int64).reshape(NUM_WARM_BATCHES, ROWS, TOKENS - 2)
    edge = np.ones((NUM_WARM_BATCHES, ROWS, 1), np.int64)
    ids = np.concatenate([edge * special.cls, inner, edge * special.sep], axis=2)
    starts_word = np.array([piece.startswith(SPACE_SYMBOL) for piece in pieces])
    return Batches(ids, special, pieces, starts_word, text)


def huggingface_masker(batches: Batches, whole_word: bool) -> Call:
    """DataCollatorForLanguageModeling on lists of ids, as datasets gives them, with special_tokens_mask at hand.

    For whole words it wants the characters' offsets: a gap before each word.
    """
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    tokenizer = AutoTokenizer.from_pretrained(str(batches.text.huggingface))
    collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=PROBABILITY, whole_word_mask=whole_word)
    is_special = np.isin(batches.ids, [batches.special.cls, batches.special.sep]).astype(np.int64)
    prepared = []
    for ids, special in zip(batches.ids, is_special, strict=True):
        ends = np.cumsum(1 + batches.starts_word[ids], axis=1)
        offsets = np.stack([ends - 1, ends], axis=2) * (1 - special)[:, :, None]
        examples = [
            {"input_ids": row.tolist(), "special_tokens_mask": mask.tolist()}
            | ({"offset_mapping": pairs.tolist()} if whole_word else {})
            for row, mask, pairs in zip(ids, special, offsets, strict=True)
        ]
        prepared.append(examples)
    turn = itertools.cycle(prepared)

    def mask() -> int:
        batch = collator([dict(example) for example in next(turn)])
        return int(batch["labels"].numel())

    return mask


def modernbert_masker(batches: Batches, options: argparse.Namespace) -> Call:
    """SequencePacker.mlm_masking, which spares padding only."""
    packer = lift_modernbert(options.modernbert).SequencePacker
    generator = np.random.default_rng(1)
    turn = itertools.cycle(batches.ids)

    def mask() -> int:
        special = batches.special
        _, labels = packer.mlm_masking(next(turn), PROBABILITY, special.mask, special.pad, -100, generator)
        return int(labels.size)

    return mask


def deberta_masker(batches: Batches, options: argparse.Namespace, max_gram: int) -> Call:
    """NGramMaskGenerator on lists of pieces; whole words and n-grams where max_gram is above 1."""
    path = options.deberta / "DeBERTa" / "apps" / "tasks" / "mlm_task.py"
    known = {"np": np, "math": math, "bisect": bisect.bisect}
    generator_class = lift_definitions(path, {"NGramMaskGenerator"}, known).NGramMaskGenerator
    starts = {piece for piece, starts in zip(batches.pieces, batches.starts_word, strict=True) if starts}
    tokenizer = SimpleNamespace(
        vocab={piece: index for index, piece in enumerate(batches.pieces)},
        part_of_whole_word=lambda token: token not in starts,
    )
    generator = generator_class(tokenizer, mask_lm_prob=PROBABILITY, max_seq_len=TOKENS, max_gram=max_gram)
    rng = random.Random(1)
    rows = [[batches.pieces[index] for index in row] for row in batches.ids.reshape(-1, TOKENS).tolist()]
    turn = itertools.cycle([rows[start : start + ROWS] for start in range(0, len(rows), ROWS)])

    def mask() -> int:
        return sum(len(generator.mask_tokens(list(row), rng)[1]) for row in next(turn))

    return mask


def megatron_masker(batches: Batches, options: argparse.Namespace, whole_word: bool) -> Call:
    """_create_masked_lm_predictions of its BERT dataset; pieces inside a word are named as it expects, with "##"."""
    megatron.import_from(options.megatron)
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset

    special = batches.special
    names = [
        piece if starts else f"##{piece}" for piece, starts in zip(batches.pieces, batches.starts_word, strict=True)
    ]
    # what is assigned here is all that the method reads
    dataset = object.__new__(BERTMaskedWordPieceDataset)
    dataset.token_lookup = list(range(len(names)))
    dataset.config = SimpleNamespace(
        tokenizer=SimpleNamespace(
            cls=special.cls, sep=special.sep, mask=special.mask, inv_vocab=dict(enumerate(names))
        ),
        masking_probability=PROBABILITY, masking_max_ngram=3 if whole_word else 1, masking_do_full_word=whole_word,
        masking_do_permutation=False, masking_use_longer_ngrams=False, masking_use_geometric_distribution=False,
    )  # fmt: skip
    random_state = np.random.RandomState(1)
    rows = batches.ids.reshape(-1, TOKENS).tolist()
    turn = itertools.cycle([rows[start : start + ROWS] for start in range(0, len(rows), ROWS)])

    def mask() -> int:
        return sum(len(dataset._create_masked_lm_predictions(row, TOKENS, random_state)[0]) for row in next(turn))

    return mask


def measure_masking(batches: Batches, options: argparse.Namespace) -> Iterator[Row]:
    """Rows for case "uniform" and "whole word"."""
    cases: dict[str, dict[str, Callable[[], Call]]] = {
        "uniform": {
            "ours": functools.partial(our_data.masker, batches, "token"),
            "huggingface": functools.partial(huggingface_masker, batches, False),
        },
        "whole word": {
            "ours": functools.partial(our_data.masker, batches, "word"),
            "huggingface": functools.partial(huggingface_masker, batches, True),
        },
    }
    if options.modernbert is not None:
        cases["uniform"]["modernbert"] = functools.partial(modernbert_masker, batches, options)
    if options.deberta is not None:
        cases["uniform"]["deberta"] = functools.partial(deberta_masker, batches, options, 1)
        cases["whole word"]["deberta"] = functools.partial(deberta_masker, batches, options, 3)
    if options.megatron is not None:
        cases["uniform"]["megatron"] = functools.partial(megatron_masker, batches, options, False)
        cases["whole word"]["megatron"] = functools.partial(megatron_masker, batches, options, True)
    for case, makers in cases.items():
        yield from measure_case("mask", case, makers, options.repeats)
