"""A rank that makes no progress leaves its stacks and ends, so that the run can be started again.

What: a thread that is told of progress and, when none came for so many seconds (of the monotonic clock: a clock that is
set changes nothing), writes the stacks of all threads of this rank to RUN/stacks/rank_00000.txt, says so in one line,
and ends the process with EXIT_HANG. Ranks wait for each other in every step, so where one hangs all find it within a
step's time: GRACE_SECONDS let each write its stacks before the launcher ends the others. Where a rank is stuck without
giving the interpreter away, faulthandler's own timer, which needs no interpreter, does the same later.
Used by: trainer/loop.py. Tested by tests/trainer/test_watchdog.py and tests/integration/test_faults.py.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
from pathlib import Path

EXIT_HANG = 86
GRACE_SECONDS = 10.0
POLL_SHARE = 0.1  # of the limit, or a second
STACKS_FOLDER = "stacks"


class Watchdog:
    """Watches this rank; start with `progress`, end with `close`.

    Args:
        seconds: without progress for so long, the process ends; 0: never.
    """

    def __init__(self, run_dir: Path, rank: int, seconds: float) -> None:
        self._seconds = seconds
        self._rank = rank
        self._path = run_dir / STACKS_FOLDER / f"rank_{rank:05}.txt"
        self._last = time.monotonic()
        self._closed = threading.Event()
        if seconds:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("w", encoding="utf-8")
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            self.progress()

    def progress(self) -> None:
        """Say that something was done."""
        self._last = time.monotonic()
        if self._seconds and not self._closed.is_set():
            faulthandler.dump_traceback_later(self._seconds + 2 * GRACE_SECONDS, exit=True, file=self._file)

    def close(self) -> None:
        """Watch no longer; what was written without cause is removed."""
        self._closed.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # another rank's may be there still
                self._path.parent.rmdir()

    def _watch(self) -> None:
        poll = min(1.0, POLL_SHARE * self._seconds)
        while not self._closed.wait(poll):
            if time.monotonic() - self._last > self._seconds:
                faulthandler.dump_traceback(self._file, all_threads=True)
                print(
                    f"error: rank {self._rank} on {socket.gethostname()} made no progress for {self._seconds:g} s: "
                    f"what it was doing is in {self._path}; the same command goes on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                time.sleep(GRACE_SECONDS)
                os._exit(EXIT_HANG)


def find_stacks(run_dir: Path) -> list[Path]:
    """Stacks that ranks of this run left when they hung."""
    files = sorted((run_dir / STACKS_FOLDER).glob("rank_*.txt"))
    return [path for path in files if path.stat().st_size]
