"""Batches of real lengths for `benchmarks.drop_in`: how long the texts of a file are, and rows padded to the longest.

A token is a word, a number or a punctuation mark, which is what a large vocabulary leaves of English; no tokenizer has
to be trained, and what the ids are decides no time.
Used by: benchmarks/drop_in.py. Tested by: tests/benchmarks/test_drop_in.py.
"""

# B rows  N tokens of a row

import random
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from disentangled.trainer.demo import write_python_english

SEED = 20261121
UNITS = {"block": r"\n[ \t]*\n", "line": r"\n"}  # what separates texts
SPECIAL_TOKENS = 2  # [CLS] and [SEP]
FEWEST_TOKENS = 16
CASES = ("mixed", "dense")


@dataclass(frozen=True, eq=False)
class Batch:
    """Ids and mask [B, N], and how many tokens of each row are live."""

    input_ids: Tensor
    attention_mask: Tensor
    lengths: tuple[int, ...]


def text_lengths(path: Path | None, unit: str, scratch: Path) -> list[int]:
    """Tokens of each text of a .txt, special ones included, those of FEWEST_TOKENS and more; None: Python's English."""
    if path is None:
        path = scratch / "python_english.txt"
        write_python_english(path)
    texts = re.split(UNITS[unit], path.read_text("utf-8"))
    lengths = [len(re.findall(r"\w+|[^\w\s]", text)) + SPECIAL_TOKENS for text in texts]
    return [length for length in lengths if length >= FEWEST_TOKENS]


def make_batches(
    lengths: list[int], case: str, num_batches: int, rows: int, tokens: int, vocabulary: int, device: str
) -> list[Batch]:
    """Batches whose first row fills the width, as the longest of a batch does; the others' lengths are drawn."""
    draw = random.Random(SEED)
    generator = torch.Generator().manual_seed(SEED)
    batches = []
    for _ in range(num_batches):
        drawn = [min(draw.choice(lengths), tokens) if case == "mixed" else tokens for _ in range(rows - 1)]
        row_lengths = (tokens, *drawn)
        mask = (torch.arange(tokens) < torch.tensor(row_lengths)[:, None]).long()
        ids = torch.randint(vocabulary, mask.shape, generator=generator) * mask
        batches.append(Batch(ids.to(device), mask.to(device), row_lengths))
    return batches
