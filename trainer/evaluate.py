"""Held-out evaluation of both models.

What: `evaluate.num_sequences` windows of the validation split, at even distances, each masked the same way at every
evaluation and on any number of ranks; the generator's loss on the masked tokens, and the discriminator's on the text
that the generator then corrupts. No dropout.
Used by: trainer/loop.py. Tested by tests/trainer/test_evaluate.py.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from disentangled.kernels.counter_rng import Stream
from disentangled.model.generator import Sampling
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.metrics import MetricSums


@torch.no_grad()
def evaluate(
    engines: EnginePair,
    builder: BatchBuilder,
    sampling: Sampling,
    ranks: Ranks,
    windows: NDArray[np.int64],
    micro_sequences: int,
    progress: Callable[[], None] = lambda: None,
    judges: bool = True,
) -> dict[str, float]:
    """Metrics over these windows, their names starting with `validation_`; `progress` is called before each pass.

    Without `judges` they are the generator's alone.
    Every rank runs the same number of passes (ZeRO-3 needs that); a pass without windows counts nothing.
    """
    sums = MetricSums(ranks.device)
    needs_rows = engines.discriminator.module.embedding_sharing != "nes"
    for start in range(0, windows.size, micro_sequences * ranks.world_size):
        progress()
        first = start + ranks.rank * micro_sequences
        batch = builder.build(windows[first : first + micro_sequences]).to(ranks.device)
        layout = batch.layout()
        generated = engines.generator(
            batch.original_ids, layout, batch.masked_rows, None, sampling, masked_ids=batch.masked_ids
        )
        sums.add_generator(generated, batch.num_masked)
        if not judges:
            continue
        with engines.generator_rows() as look_up:
            rows = look_up(generated.corrupted_ids) if needs_rows else None
        judged = engines.discriminator(generated.corrupted_ids, batch.original_ids, layout, None, rows)
        sums.add_discriminator(judged, layout.live)
    return {f"validation_{name}": value for name, value in sums.take().items()}


def choose_windows(num_windows: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the windows 0 .. num_windows - 1, at even distances, so that every source has its part."""
    chosen = min(num_windows, most)
    return np.arange(chosen, dtype=np.int64) * num_windows // chosen


def evaluation_sampling(sampling: Sampling) -> Sampling:
    """The same sampling with random numbers of its own."""
    return Sampling(sampling.seed, Stream.EVALUATION_REPLACEMENT, sampling.banned, sampling.temperature)
