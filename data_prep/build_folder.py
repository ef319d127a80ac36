"""The output directory of a build: claimed by one build at a time, and resumed where an earlier one was stopped.

    DIR/unfinished/lock               locked while a build works here; the kernel frees it however the build ends
    DIR/unfinished/plan.json          what is built of what; a build goes on only with the same plan
    DIR/unfinished/prepared.npz       what the first pass found out, where there is one
    DIR/unfinished/units/000000.json  a unit's record, written after its shards: its commit

A build that fails or is stopped keeps the units that are committed, and nothing at all where none is. A finished
dataset has no `unfinished`. Readers ask for manifest.json, which is written last, and never look in there.

Used by: build_corpus.py, in the process that hands out the work. Tested by: tests/data_prep/test_build_folder.py.
Not here: what the files hold.
"""

import contextlib
import fcntl
import json
import os
import shutil
import socket
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from disentangled.data_prep.shard_schema import MANIFEST_NAME, SPLITS, TOKENIZER_NAME
from disentangled.data_prep.whole_file import write_file

UNFINISHED = "unfinished"
PREPARED_NAME = f"{UNFINISHED}/prepared.npz"


def unit_record_path(directory: Path, unit: int) -> Path:
    """Return where a unit's record lies; its rejected documents lie beside it and end in .jsonl."""
    return directory / UNFINISHED / "units" / f"{unit:06d}.json"


class BuildFolder:
    """A context: enter to claim a directory for a plan (absent, empty, or with an unfinished build of the same plan).

    finish() ends the build; leaving without it keeps what is committed.
    """

    def __init__(self, path: str | Path, plan: dict[str, Any]) -> None:
        self.path = Path(path)
        self._plan = plan
        self._lock: IO[str] | None = None
        self._made_folders: list[Path] = []

    def __enter__(self) -> "BuildFolder":
        self._refuse_taken()
        try:
            self._make_folder(self.path / UNFINISHED)
            self._take_lock()
            self._compare_plan()
            for folder in (*(self.path / split for split in SPLITS), self.path / UNFINISHED / "units"):
                self._make_folder(folder)
            for stray in self.path.rglob("*.tmp"):
                stray.unlink()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def has_progress(self) -> bool:
        """Whether there is anything to go on from."""
        return (self.path / PREPARED_NAME).exists() or any((self.path / UNFINISHED / "units").glob("*.json"))

    def finish(self) -> None:
        """Declare the dataset complete: the manifest is there."""
        assert (self.path / MANIFEST_NAME).exists(), "the manifest is written before"
        shutil.rmtree(self.path / UNFINISHED)

    def discard(self) -> None:
        """Remove the build, folders included; what others have put there stays."""
        for split in SPLITS:
            for file in (self.path / split).glob("shard-*"):
                file.unlink()
        (self.path / TOKENIZER_NAME).unlink(missing_ok=True)
        # An earlier build that was killed may have made these; `unfinished` goes last, as it says whose the folder is.
        for split in SPLITS:
            with contextlib.suppress(OSError):
                (self.path / split).rmdir()
        shutil.rmtree(self.path / UNFINISHED, ignore_errors=True)
        for folder in reversed(self._made_folders):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _refuse_taken(self) -> None:
        """Refuse a place that holds anything but an unfinished build."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"{self.path}: exists and is no folder: name a new or empty folder as --output")
        if (self.path / UNFINISHED).is_dir():
            return
        if (self.path / MANIFEST_NAME).exists():
            raise ValueError(f"{self.path}: holds a finished dataset: name another --output or remove it first")
        if any(self.path.iterdir()):
            raise ValueError(f"{self.path}: not empty: name a new or empty folder as --output")

    def _take_lock(self) -> None:
        path = self.path / UNFINISHED / "lock"
        lock = path.open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            remedy = "wait for it or name another --output"
            raise ValueError(f"{self.path}: another build is writing here ({owner}): {remedy}") from None
        if not path.exists():
            lock.close()
            raise ValueError(f"{self.path}: another build has just finished here: name another --output")
        self._lock = lock
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()

    def _compare_plan(self) -> None:
        """Write the plan, or refuse to go on with another one than is there."""
        path = self.path / UNFINISHED / "plan.json"
        plan = json.loads(json.dumps(self._plan))
        if not path.exists() or not self.has_progress:
            write_file(path, (json.dumps(plan, indent=1) + "\n").encode())
            return
        before = json.loads(path.read_bytes())
        for name in plan:
            if before.get(name) != plan[name]:
                found = _first_difference(name, before.get(name), plan[name])
                remedy = "take back the change, remove the folder or name another --output"
                raise ValueError(f"{self.path}: holds an unfinished build with another {found}: {remedy}")

    def _make_folder(self, path: Path) -> None:
        """Make a folder and its absent parents, and remember them, outermost first."""
        for folder in reversed([path, *path.parents]):
            if not folder.exists():
                folder.mkdir()
                self._made_folders.append(folder)

    def _leave(self) -> None:
        """Remove what nothing can be made of, and let go of the folder."""
        if self._lock and (self.path / UNFINISHED).exists() and not self.has_progress:
            self.discard()
        elif not self._lock:
            for folder in reversed(self._made_folders):
                with contextlib.suppress(OSError):
                    folder.rmdir()
        if self._lock:
            self._lock.close()


def _first_difference(name: str, before: Any, now: Any) -> str:
    """Return what differs between two values of a plan, in a few words."""
    if isinstance(before, list) and isinstance(now, list):
        for old, new in zip(before, now, strict=False):
            if old != new:
                return f"{name} ({new.get('name', new) if isinstance(new, dict) else new} has changed)"
        return f"{name} ({len(before)} before, {len(now)} now)"
    return f"{name} ({before} before, {now} now)"
