import os
import signal
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from disentangled.trainer.lost_worker import describe_lost_worker, is_lost_worker
from disentangled.trainer.sections import DataSection


class EndsItself(Dataset[int]):
    def __init__(self, number: int) -> None:
        self._number = number

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), self._number)
        return index

    def __len__(self) -> int:
        return 1


def lose_worker(number: int) -> RuntimeError:
    """The error that torch raises where a worker dies of this signal."""
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(EndsItself(number), num_workers=1, multiprocessing_context="fork"))
    return caught.value


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGBUS, "Bus error"), (signal.SIGKILL, "Killed"), (signal.SIGSEGV, "Segmentation")]
)
def test_signal_is_named_whatever_it_is(shards: Path, number: int, name: str) -> None:
    error = lose_worker(number)
    assert is_lost_worker(error), error
    line = describe_lost_worker(error, DataSection(shards=str(shards)))
    assert name in line and "\n" not in line
    assert ("data.workers" in line) == (number == signal.SIGKILL)


def test_shard_that_was_cut_short_is_named(shards: Path) -> None:
    shard = next((shards / "train").rglob("*.arrow"))
    whole = shard.read_bytes()
    data = DataSection(shards=str(shards))
    error = RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that")
    try:
        shard.write_bytes(whole[:1000])
        assert str(shard) in describe_lost_worker(error, data)
    finally:
        shard.write_bytes(whole)
    assert str(shard) not in describe_lost_worker(error, data)


def test_other_errors_are_not_taken_for_it() -> None:
    assert not is_lost_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_worker(ValueError("DataLoader worker (pid 7) is killed by signal: Bus error."))
