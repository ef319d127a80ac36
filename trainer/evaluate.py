"""Held-out evaluation of both models.

What: the first `evaluate.num_sequences` windows of the validation split, each masked the same way at every evaluation
and on any number of ranks; the generator's loss on the masked tokens, and the discriminator's on the text that the
generator then corrupts. No dropout.
Used by: trainer/loop.py. Tested by tests/trainer/test_evaluate.py.
"""

import torch

from disentangled.kernels.counter_rng import Stream
from disentangled.model.generator import Sampling
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.metrics import MetricSums


@torch.no_grad()
def evaluate(
    engines: EnginePair, builder: BatchBuilder, sampling: Sampling, ranks: Ranks, num_windows: int, micro_sequences: int
) -> dict[str, float]:
    """Metrics over windows 0 .. num_windows - 1, their names starting with `validation_`.

    Every rank runs the same number of passes (ZeRO-3 needs that); a pass without windows counts nothing.
    """
    sums = MetricSums(ranks.device)
    needs_rows = engines.discriminator.module.embedding_sharing != "nes"
    for start in range(0, num_windows, micro_sequences * ranks.world_size):
        first = start + ranks.rank * micro_sequences
        windows = range(min(first, num_windows), min(first + micro_sequences, num_windows))
        batch = builder.build(list(windows)).to(ranks.device)
        layout = batch.layout()
        generated = engines.generator(batch.original_ids, layout, batch.masked_rows, None, sampling)
        sums.add_generator(generated, batch.num_masked)
        with engines.generator_rows() as look_up:
            rows = look_up(generated.corrupted_ids) if needs_rows else None
        judged = engines.discriminator(generated.corrupted_ids, batch.original_ids, layout, None, rows)
        sums.add_discriminator(judged, layout.live)
    return {f"validation_{name}": value for name, value in sums.take().items()}


def evaluation_sampling(sampling: Sampling) -> Sampling:
    """The same sampling with random numbers of its own."""
    return Sampling(sampling.seed, Stream.EVALUATION_REPLACEMENT, sampling.banned, sampling.temperature)
