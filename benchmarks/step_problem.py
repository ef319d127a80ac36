"""What `benchmarks.step` runs: the sizes of a recipe and micro-batches of random text, the same for every variant.

What: rows are cut and masked by the training's own BatchBuilder from a text that is made up, so no shards are needed.
Case "fixed": each row is one document of sequence_length tokens, which is the same rectangle for everyone. Case
"mixed": documents of log-normal lengths fill each row, as packed training has them. `replaced` are the ids that every
discriminator judges when the variants are compared: a share of the masked tokens, replaced at random.
Used by: benchmarks/step.py, step_variants.py, step_rivals.py, embedding.py. Tested by: tests/benchmarks/test_step.py.
"""

# T flat tokens of a micro-batch  V vocabulary

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.attention_problem import builtin_text_lengths
from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.rtd_step import GlobalCounts
from disentangled.trainer.run_config import RunConfig, load_run_config
from disentangled.trainer.shards import Pieces

SEED = 20261122
CASES = ("fixed", "mixed")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SPECIAL_IDS = SpecialIds(pad=0, cls=1, sep=2, unk=3, mask=4)
FIRST_PIECE = 5
VOCABULARY = 8192  # of a recipe that leaves it to its shards: what `make demo` trains
CHECKED_TOKENS = 4096  # of the rows that variants are compared on: transformers in float64 holds all their scores
REPLACED_SHARE = 0.7  # of the masked tokens: an early generator is right on three of ten


@dataclass(frozen=True, eq=False)
class StepProblem:
    """One step's work.

    Attributes:
        precision: fp32, or bf16: weights in float32 and torch.autocast, for everyone.
        batches: the micro-batches, on the device.
        replaced: of each, ids [T] for all discriminators to judge.
    """

    config: RunConfig
    precision: str
    case: str
    device: torch.device
    batches: tuple[MaskedBatch, ...]
    replaced: tuple[Tensor, ...]

    @property
    def vocab_size(self) -> int:
        """V, of both models."""
        return self.config.model.vocab_size

    @property
    def counts(self) -> GlobalCounts:
        """Masked and live tokens of the step."""
        return GlobalCounts(sum(x.num_masked for x in self.batches), sum(x.num_live for x in self.batches))

    def autocast(self) -> torch.autocast:
        """The context that a forward pass runs in."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


class RandomText:
    """A store of rows (trainer/batch.PieceStore) whose pieces have the given lengths and whose ids are random."""

    def __init__(self, row_lengths: Sequence[Sequence[int]], vocab_size: int) -> None:
        self._row_lengths = row_lengths
        self._vocab_size = vocab_size

    def pieces(self, windows: NDArray[np.int64]) -> Pieces:
        """Those of these rows."""
        lengths = [self._row_lengths[window] for window in windows]
        row = np.repeat(np.arange(len(lengths)), [len(row) for row in lengths])
        length = np.array([length for row in lengths for length in row], dtype=np.int64)
        return Pieces(row=row, shard=np.zeros_like(row), start=np.cumsum(length) - length, length=length)

    def copy_tokens(self, pieces: Pieces, out: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Random ids, the same at every call."""
        random = np.random.default_rng(SEED)
        for place, length in zip(places, pieces.length, strict=True):
            out[place : place + length] = random.integers(FIRST_PIECE, self._vocab_size, length)


def load_sizes(recipe: str, overrides: Sequence[str], num_micro_batches: int) -> RunConfig:
    """The recipe as it is timed: so many micro-batches a step, and a vocabulary."""
    config = load_run_config(recipe, overrides)
    batch = replace(
        config.batch,
        global_sequences=config.batch.micro_sequences * num_micro_batches,
        first_sequences=0,
        rise_steps=0,
    )
    return replace(config, batch=batch, model=replace(config.model, vocab_size=config.model.vocab_size or VOCABULARY))


def make_problem(config: RunConfig, precision: str, case: str, device: torch.device) -> StepProblem:
    """The micro-batches of one step."""
    builder, num_rows = make_builder(config, case), config.batch.micro_sequences
    built = [
        builder.build(np.arange(first, first + num_rows)) for first in range(0, config.batch.global_sequences, num_rows)
    ]
    random = torch.Generator().manual_seed(SEED)
    replaced = []
    for batch in built:
        changed = batch.masked_rows[torch.rand(batch.num_masked, generator=random) < REPLACED_SHARE]
        drawn = torch.randint(FIRST_PIECE, config.model.vocab_size, changed.shape, generator=random)
        replaced.append(batch.original_ids.index_copy(0, changed, drawn).to(device))
    return StepProblem(config, precision, case, device, tuple(batch.to(device) for batch in built), tuple(replaced))


def make_checked_problem(config: RunConfig, precision: str, device: torch.device) -> StepProblem:
    """One micro-batch of full rows, as many as CHECKED_TOKENS allow."""
    num_rows = max(1, min(config.batch.micro_sequences, CHECKED_TOKENS // config.data.sequence_length))
    batch = replace(config.batch, global_sequences=num_rows, micro_sequences=num_rows)
    return make_problem(replace(config, batch=batch), precision, "fixed", device)


def make_builder(config: RunConfig, case: str) -> BatchBuilder:
    """The training's own, on a text for one step."""
    tokens, vocab_size = config.data.sequence_length, config.model.vocab_size
    rows = [[tokens - 2]] * config.batch.global_sequences if case == "fixed" else mixed_rows(config)
    return BatchBuilder(
        RandomText(rows, vocab_size),
        None,
        SPECIAL_IDS,
        vocab_size,
        sequence_length=tokens,
        micro_sequences=config.batch.micro_sequences,
        masking=config.masking.rule(),
        seed=config.run.seed,
        pieces=(FIRST_PIECE, vocab_size),
    )


def mixed_rows(config: RunConfig) -> list[list[int]]:
    """Lengths of the pieces of each row, drawn until it is full; the last is cut."""
    drawn = iter(
        np.resize(builtin_text_lengths(), config.batch.global_sequences * config.data.sequence_length).tolist()
    )
    rows = []
    for _ in range(config.batch.global_sequences):
        row: list[int] = []
        free = config.data.sequence_length
        while free >= config.data.minimum_piece_tokens + 2:
            row.append(min(next(drawn), free) - 2)
            free -= row[-1] + 2
        rows.append(row)
    return rows
