"""Batches ahead of time: worker processes build the next steps' micro-batches while the device computes.

What: torch's DataLoader over numbered micro-batches, in order. A micro-batch depends on its step and its number in the
step alone, so any number of workers, and none, gives the same ones, and a resumed run begins at its step. Workers are
forked: they share the mapped shards, know no device, and ignore the signals that ask the run to stop, as the rank does.
Taking a batch over from another process costs a rank 1 to 3 ms, so a thread does it while the step before runs.
Used by: trainer/assemble.py, loop.py. Tested by: tests/trainer/test_loader.py.
Not here: what is in a batch (batch.py).
"""

import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from torch.utils.data import DataLoader, Dataset

from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.batch_size import consumed_samples, micro_batches_at
from disentangled.trainer.interrupt import STOP_SIGNALS
from disentangled.trainer.order import rank_slice
from disentangled.trainer.sections import BatchSection
from disentangled.trainer.skipped_samples import Skip, num_skipped_before

# Micro-batches that a worker is ahead by: one to be fetched and one being built.
PREFETCH = 2


@dataclass(frozen=True)
class Slicing:
    """Which samples of each step are this rank's."""

    batch: BatchSection
    rank: int
    world_size: int


class DataError(ValueError):
    """A batch cannot be built: a shard is damaged or gone. One line that names it."""


class MicroBatches(Dataset[MaskedBatch | DataError]):
    """This rank's micro-batch (step, number in the step)."""

    def __init__(self, builder: BatchBuilder, slicing: Slicing, skips: Sequence[Skip]) -> None:
        self._builder = builder
        self._slicing = slicing
        self._skips = skips

    def __getitem__(self, place: tuple[int, int]) -> MaskedBatch | DataError:
        step, number = place
        batch, rank, world_size = self._slicing.batch, self._slicing.rank, self._slicing.world_size
        consumed = consumed_samples(batch, step) + num_skipped_before(step, self._skips)
        try:
            return self._builder.build(rank_slice(consumed, number, rank, world_size, batch.micro_sequences))
        except (ValueError, OSError) as error:
            return DataError(str(error))  # raised here, it would lose its type and gain a traceback


class BatchLoader:
    """The micro-batches of each step of this rank."""

    def __init__(self, builder: BatchBuilder, slicing: Slicing, num_workers: int = 0, pin_memory: bool = False) -> None:
        self._builder = builder
        self._slicing = slicing
        self._num_workers = num_workers
        self._pin_memory = pin_memory

    def windows(self, first_sample: int, stop_sample: int) -> list[int]:
        """The rows of the training split that are samples first_sample .. stop_sample - 1."""
        return self._builder.windows(np.arange(first_sample, stop_sample, dtype=np.int64)).tolist()

    def steps(self, first: int, stop: int, skips: Sequence[Skip] = ()) -> Generator[list[MaskedBatch], None, None]:
        """The batches of steps first .. stop - 1, samples of `skips` passed over; close it to end the workers early.

        Raises:
            DataError: a batch cannot be built, for instance because a shard is damaged.
        """
        places = ((step, number) for step in range(first, stop) for number in range(self._num_batches(step)))
        loader = DataLoader(
            MicroBatches(self._builder, self._slicing, skips),
            batch_size=None,
            sampler=places,
            num_workers=self._num_workers,
            prefetch_factor=PREFETCH if self._num_workers else None,
            multiprocessing_context="fork" if self._num_workers else None,
            pin_memory=self._pin_memory,
            worker_init_fn=_ignore_stop_signals,
        )
        step, batches = first, []
        # iter forks, which is for the main thread; and no name may keep it, or an error's traceback keeps the workers
        for batch in one_ahead(iter(loader)) if self._num_workers else loader:
            if isinstance(batch, DataError):
                raise batch
            batches.append(batch)
            if len(batches) == self._num_batches(step):
                yield batches
                step, batches = step + 1, []

    def _num_batches(self, step: int) -> int:
        return micro_batches_at(self._slicing.batch, step, self._slicing.world_size)


def one_ahead(items: Iterator[MaskedBatch | DataError]) -> Generator[MaskedBatch | DataError, None, None]:
    """The items, each taken by a thread while the one before is used; closing waits for the one being taken.

    Left behind, the thread would hold the workers, which nobody then tells to end, and the process would wait for them.
    """
    asked: SimpleQueue[bool] = SimpleQueue()
    taken: SimpleQueue[MaskedBatch | DataError | Exception | None] = SimpleQueue()

    def take() -> None:
        while asked.get():
            try:
                taken.put(next(items, None))
            except Exception as error:  # whatever it is, it is the caller's
                taken.put(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        asked.put(True)
        while (item := taken.get()) is not None:
            if isinstance(item, Exception) and not isinstance(item, DataError):
                raise item
            asked.put(True)
            yield item
    finally:
        asked.put(False)
        thread.join()


def _ignore_stop_signals(worker: int) -> None:
    """Launchers and terminals signal all processes of a run; a rank that saves needs its workers until it is done."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
