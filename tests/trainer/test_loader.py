import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.interrupt import STOP_SIGNALS
from disentangled.trainer.loader import BatchLoader, DataError, Slicing, one_ahead
from disentangled.trainer.sections import BatchSection
from tests.trainer.tiny_run import build_parts, tiny_config

ALONE = Slicing(BatchSection(global_sequences=16, micro_sequences=4), rank=0, world_size=1)
# 4 rows, 8, 12, 16, 16 ...
RISING = Slicing(BatchSection(16, 4, first_sequences=4, rise_steps=3), rank=0, world_size=1)


@pytest.fixture(scope="module")
def builder(shards: Path) -> BatchBuilder:
    return build_parts(tiny_config(shards, "batch.micro_sequences=4", "batch.global_sequences=16")).training


def same(one: list[list[MaskedBatch]], two: list[list[MaskedBatch]]) -> bool:
    pairs = [(a, b) for left, right in zip(one, two, strict=True) for a, b in zip(left, right, strict=True)]
    return all(torch.equal(a.buffer, b.buffer) and a.num_documents == b.num_documents for a, b in pairs)


@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_any_number_of_workers_gives_the_batches_of_each_step(builder: BatchBuilder, num_workers: int) -> None:
    expected = [builder.step_batches(step * 16, 4, 0, 1) for step in range(3, 8)]
    assert same(list(BatchLoader(builder, ALONE, num_workers).steps(3, 8)), expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_step(builder: BatchBuilder, world_size: int) -> None:
    accumulation = 4 // world_size
    for rank in range(world_size):
        slicing = Slicing(BatchSection(16, 4), rank, world_size)
        expected = [builder.step_batches(step * 16, accumulation, rank, world_size) for step in (2, 3)]
        assert same(list(BatchLoader(builder, slicing, 1).steps(2, 4)), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("first", [0, 2])
def test_steps_of_a_rising_batch_follow_one_another(builder: BatchBuilder, num_workers: int, first: int) -> None:
    starts = [(0, 1), (4, 2), (12, 3), (24, 4), (40, 4)]
    expected = [builder.step_batches(consumed, number, 0, 1) for consumed, number in starts[first:]]
    assert same(list(BatchLoader(builder, RISING, num_workers).steps(first, 5)), expected)


def test_no_step_is_left(builder: BatchBuilder) -> None:
    assert list(BatchLoader(builder, ALONE, 1).steps(5, 5)) == []


class Failing:
    """A builder that fails from the third micro-batch on."""

    def __init__(self, builder: BatchBuilder, error: Exception) -> None:
        self._builder, self._error, self._left = builder, error, 2

    def build(self, samples: object) -> MaskedBatch:
        if not self._left:
            raise self._error
        self._left -= 1
        return self._builder.build([0])


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("error", [ValueError("shard-a.arrow: damaged"), OSError(5, "Input/output error", "shard-a")])
def test_error_of_a_worker_is_one_line(builder: BatchBuilder, num_workers: int, error: Exception) -> None:
    failing = Failing(builder, error)
    loader = BatchLoader(failing, Slicing(BatchSection(8, 4), 0, 1), num_workers)  # type: ignore[arg-type]
    steps = loader.steps(0, 4)
    assert len(next(steps)) == 2
    with pytest.raises(DataError, match="shard-a") as raised:
        next(steps)
    assert str(raised.value) == str(error)


def test_a_batch_is_taken_over_while_the_one_before_is_used() -> None:
    taken = [threading.Event() for _ in range(3)]

    def items() -> Iterator[threading.Event]:
        for each in taken:
            each.set()
            yield each

    threads = set(threading.enumerate())
    used = one_ahead(items())  # type: ignore[arg-type]
    assert next(used) is taken[0]
    assert taken[1].wait(timeout=30) and not taken[2].is_set()
    assert next(used) is taken[1]
    assert taken[2].wait(timeout=30)
    used.close()
    assert set(threading.enumerate()) <= threads


def test_closing_waits_for_the_batch_being_taken_over() -> None:
    arrives = threading.Event()

    def items() -> Iterator[object]:
        yield object()
        arrives.wait()

    threads = set(threading.enumerate())
    used = one_ahead(items())  # type: ignore[arg-type]
    next(used)
    timer = threading.Timer(0.3, arrives.set)
    timer.start()
    used.close()
    assert arrives.is_set()
    timer.join()
    assert set(threading.enumerate()) <= threads


def test_an_error_of_the_taking_is_raised_where_the_batch_is_used() -> None:
    def items() -> Iterator[object]:
        yield object()
        raise RuntimeError("DataLoader worker (pid 1) is killed")

    used = one_ahead(items())  # type: ignore[arg-type]
    next(used)
    with pytest.raises(RuntimeError, match="is killed"):
        next(used)


def test_closing_ends_the_workers(builder: BatchBuilder) -> None:
    steps = BatchLoader(builder, ALONE, 2).steps(0, 1000)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_workers_go_on_when_the_run_is_asked_to_stop(builder: BatchBuilder, number: signal.Signals) -> None:
    steps = BatchLoader(builder, ALONE, 1).steps(0, 10)
    got = [next(steps)]
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, number)
    got += list(steps)
    assert same(got, [builder.step_batches(step * 16, 4, 0, 1) for step in range(10)])
