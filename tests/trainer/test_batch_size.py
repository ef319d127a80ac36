import itertools

import pytest

from disentangled.trainer.batch_size import consumed_samples, micro_batches_at, sequences_at
from disentangled.trainer.order import rank_slice
from disentangled.trainer.sections import BatchSection

LEVEL = BatchSection(global_sequences=24, micro_sequences=4)
RISING = [
    BatchSection(global_sequences=size, micro_sequences=1, first_sequences=first, rise_steps=steps)
    for size, first, steps in [(24, 8, 4), (24, 4, 13), (64, 4, 5), (16, 8, 1), (16, 8, 7), (7, 1, 6)]
]


def test_batch_without_a_warm_up_is_level() -> None:
    assert [sequences_at(LEVEL, step) for step in (0, 1, 1000)] == [24, 24, 24]
    assert [consumed_samples(LEVEL, step) for step in (0, 1, 1000)] == [0, 24, 24000]


def test_batch_rises_from_the_first_size_to_the_last() -> None:
    batch = BatchSection(global_sequences=32, micro_sequences=4, first_sequences=8, rise_steps=6)
    assert [sequences_at(batch, step) for step in range(8)] == [8, 8, 16, 16, 24, 24, 32, 32]
    assert [micro_batches_at(batch, step, world_size=2) for step in range(8)] == [1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("batch", RISING)
def test_batch_never_falls_and_is_whole_parts(batch: BatchSection) -> None:
    sizes = [sequences_at(batch, step) for step in range(batch.rise_steps + 3)]
    assert sizes[0] == batch.first_sequences and sizes[batch.rise_steps - 1] < batch.global_sequences
    assert set(sizes[batch.rise_steps :]) == {batch.global_sequences}
    assert sizes == sorted(sizes) and not any(size % batch.first_sequences for size in sizes)


@pytest.mark.parametrize("batch", [LEVEL, *RISING])
def test_consumed_samples_are_the_sizes_of_all_steps_before(batch: BatchSection) -> None:
    sizes = [sequences_at(batch, step) for step in range(40)]
    assert [consumed_samples(batch, step) for step in range(41)] == [0, *itertools.accumulate(sizes)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("micro_sequences", [1, 2])
def test_any_number_of_ranks_and_micro_batches_consumes_each_sample_once(world_size: int, micro_sequences: int) -> None:
    batch = BatchSection(24, micro_sequences, first_sequences=8, rise_steps=5)
    seen = [
        sample
        for step in range(7)
        for rank in range(world_size)
        for number in range(micro_batches_at(batch, step, world_size))
        for sample in rank_slice(consumed_samples(batch, step), number, rank, world_size, micro_sequences)
    ]
    assert sorted(seen) == list(range(consumed_samples(batch, 7)))
