"""A data worker that the system ended: recognised, and said with the likely cause.

What: torch's DataLoader raises a RuntimeError in the middle of whatever the rank is doing, so this step cannot be
saved. A bus error is what reading a mapped shard gives once its file has been cut short.
Used by: trainer/train.py. Tested by tests/trainer/test_lost_worker.py and tests/integration/test_faults.py.
Not here: damage that a worker finds itself (loader.py).
"""

import re

from disentangled.trainer.dataset import open_dataset
from disentangled.trainer.sections import DataSection

LOST = "DataLoader worker (pid"  # how all of torch.utils.data's lines about it begin
SIGNAL = re.compile(r"killed by signal: ([^.]*)")


def is_lost_worker(error: BaseException) -> bool:
    """Whether the error says that a worker process is no more."""
    return isinstance(error, RuntimeError) and str(error).startswith(LOST)


def describe_lost_worker(error: BaseException, data: DataSection) -> str:
    """One line: what ended it, the shard that is to blame if one is, and what to do."""
    found = SIGNAL.search(f"{error} {error.__cause__}")  # the line with the signal may be the cause of another
    by = found[1] if found else "an unknown cause"
    return (
        f"a process that builds batches was ended ({by}): {_likely_cause(by, data)}; then run the same command again, "
        "it goes on from its last checkpoint"
    )


def _likely_cause(by: str, data: DataSection) -> str:
    try:
        open_dataset(data.shards, data.cache, data.cache_bytes)
    except (ValueError, OSError) as fault:
        return str(fault)
    if by == "Killed":
        return "the host may be out of memory: lower data.workers or the ranks of a host"
    return (
        f"all files of {data.shards} have their sizes; check them (python -m disentangled.data_prep.verify "
        f"{data.shards}) and the room in /dev/shm"
    )
