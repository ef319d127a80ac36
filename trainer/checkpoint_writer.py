"""Writing checkpoints beside the training: a copy is taken, a thread writes it, the ranks agree that it is whole.

What: `begin` copies this rank's state to the host and starts a thread that writes, flushes and hashes its files;
training goes on meanwhile. `finish` waits for it, gathers what all ranks wrote, and the first rank seals, renames and
removes what is outdated. Where a rank could not write (a full disk), no rank has a checkpoint of that step, the ones
before stay, and finish says why.
Used by: trainer/saving.py. Tested by tests/trainer/test_checkpoint_writer.py and tests/integration/test_faults.py.
Not here: layout and checks of a checkpoint (checkpoint.py).
"""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from disentangled.trainer.checkpoint import (
    MODELS,
    STATE,
    FileRecord,
    TrainerState,
    checkpoints_of,
    outdated_checkpoints,
    seal,
    settle,
    step_name,
    sync_directory,
    write_atomically,
    write_state,
)
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.engine_state import RankState, take_state
from disentangled.trainer.model_files import rank_file, write_rank_file
from disentangled.trainer.sections import CheckpointSection


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written."""

    step: int
    partial: Path
    files: Future[list[FileRecord]]


class CheckpointWriter:
    """Writes the checkpoints of one run, one at a time; every rank has one and calls it at the same steps."""

    def __init__(self, run_dir: Path, section: CheckpointSection, ranks: Ranks) -> None:
        self._run_dir = run_dir
        self._section = section
        self._ranks = ranks
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Pending | None = None

    @property
    def pending_step(self) -> int | None:
        """The step of the checkpoint that was begun and not finished."""
        return self._pending.step if self._pending else None

    @property
    def is_written(self) -> bool:
        """Whether this rank's part of the pending checkpoint is on disk, or failed."""
        return self._pending is not None and self._pending.files.done()

    def begin(self, engines: EnginePair, state: TrainerState) -> None:
        """Copy the engines' state and start writing it.

        Raises:
            OSError: the folder cannot be made; on every rank.
        """
        assert self._pending is None, "finish the checkpoint before"
        root = checkpoints_of(self._run_dir)
        partial = root / f"{step_name(state.step)}.partial"
        failure = ""
        if self._ranks.is_first:
            try:
                for unfinished in root.glob("*.partial"):
                    shutil.rmtree(unfinished)
                for name in MODELS:
                    (partial / name).mkdir(parents=True)
            except OSError as error:
                failure = str(error)
        failure = self._ranks.copy_from_first(failure)
        if failure:
            raise OSError(failure)
        states = {name: take_state(getattr(engines, name).deepspeed) for name in MODELS}
        own = state if self._ranks.is_first else None
        files = self._thread.submit(write_part, partial, states, self._ranks.rank, own)
        self._pending = _Pending(state.step, partial, files)

    def finish(self) -> Path:
        """Wait until the pending checkpoint is whole, and return it.

        Raises:
            OSError: some rank could not write its part; on every rank.
        """
        assert self._pending is not None, "begin a checkpoint before"
        pending, self._pending = self._pending, None
        files: list[FileRecord] = []
        failure = ""
        try:
            files = pending.files.result()
        except OSError as error:
            failure = str(error)
        parts = self._ranks.gather((files, failure))
        failures = [text for _, text in parts if text]
        final = pending.partial.with_suffix("")
        if self._ranks.is_first:
            try:
                if not failures:
                    self._complete(pending.partial, final, [file for own, _ in parts for file in own])
            except OSError as error:
                failures = [str(error)]
            if failures:
                shutil.rmtree(pending.partial, ignore_errors=True)
        failures = self._ranks.copy_from_first(failures)
        if failures:
            raise OSError(failures[0])
        return final

    def _complete(self, partial: Path, final: Path, files: list[FileRecord]) -> None:
        seal(partial, files)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_directory(final.parent)
        write_atomically(final.parent / "latest", final.name)
        section = self._section
        for other in outdated_checkpoints(self._run_dir, final, section.keep_last, section.keep_every_steps):
            shutil.rmtree(other)


def write_part(
    partial: Path, states: dict[str, RankState], rank: int, own_state: TrainerState | None
) -> list[FileRecord]:
    """Write what one rank holds of both models, and the trainer's state where it is given; returns what is on disk."""
    files = []
    for name, state in states.items():
        path = partial / name / rank_file(rank)
        write_rank_file(path, state.tensors, state.starts)
        files.append(settle(path, partial))
    if own_state is not None:
        write_state(partial, own_state)
        files.append(settle(partial / STATE, partial))
    return files
