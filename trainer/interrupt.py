"""Being asked to stop: signals, and a launcher that is gone.

What: TERM, INT and USR1 set a flag instead of killing the process; the loop reads it after each step, the ranks agree,
save and leave with EXIT_SAVED. DeepSpeed's launcher dies on SIGTERM and leaves its ranks behind: a rank also stops
when a launcher that it descends from has vanished.
Used by: trainer/loop.py, trainer/train.py. Tested by tests/integration/test_signals.py.
"""

import os
import signal
import types

import psutil

EXIT_SAVED = 85  # saved before the end: run the same command again to go on
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCHERS = ("deepspeed", "disentangled.trainer.launch")


class Interrupt:
    """Whether this rank was asked to stop. Making one takes over the three signals."""

    def __init__(self) -> None:
        self._reason = ""
        self._parent = os.getppid()
        self._launchers = [process for process in _ancestors() if _is_launcher(process)]
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def reason(self) -> str:
        """Why this rank should stop; empty while it should not."""
        if not self._reason and os.getppid() != self._parent:
            self._reason = "its parent process is gone"
        if not self._reason and any(not launcher.is_running() for launcher in self._launchers):
            self._reason = "its launcher is gone"
        return self._reason

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self._reason = f"signal {signal.Signals(number).name}"


def _ancestors() -> list[psutil.Process]:
    return psutil.Process().parents()


def _is_launcher(process: psutil.Process) -> bool:
    try:
        return any(name in argument for argument in process.cmdline()[:4] for name in LAUNCHERS)
    except psutil.Error:  # an ancestor of another user cannot be read, and is none of ours
        return False
