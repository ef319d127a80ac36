"""Being asked to stop: signals, and a launcher that is gone.

What: TERM, INT and USR1 set a flag instead of killing the process; the loop reads it before each step, the ranks agree,
save and leave with EXIT_SAVED. DeepSpeed's launchers die of SIGTERM and leave their ranks behind, and anything dies of
SIGKILL: so a rank also stops when a launcher that it descends from, or the one that its launch id names, has vanished.
A launch id is `machine-process-random`; trainer/launch.py makes it and hands it to its ranks on their command line.
Used by: trainer/loop.py, trainer/train.py, trainer/launch.py. Tested by tests/trainer/test_interrupt.py and
tests/integration/test_signals.py.
Not here: finding and signalling the ranks (trainer/launch.py).
"""

import hashlib
import os
import secrets
import signal
import socket
import types
from pathlib import Path

import psutil

EXIT_SAVED = 85  # saved before the end: run the same command again to go on
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
LAUNCH_MODULE = "disentangled.trainer.launch"
NODE_LAUNCHER = "deepspeed.launcher.launch"
LAUNCHERS = (LAUNCH_MODULE, NODE_LAUNCHER, "deepspeed.launcher.runner", "deepspeed", "ds")


class Interrupt:
    """Whether this rank was asked to stop. Make it early: a launcher that dies before that may go unnoticed."""

    def __init__(self, launch_id: str = "") -> None:
        self._reason = ""
        self._parent = os.getppid()
        self._launchers = [process for process in psutil.Process().parents() if is_launcher(process)]
        if self._launchers and is_orphaned_node_launcher(self._launchers[-1]):
            self._reason = "its launcher is gone"
        machine, _, rest = launch_id.partition("-")
        if machine == name_machine():
            try:
                launcher = psutil.Process(int(rest.partition("-")[0]))
            except psutil.NoSuchProcess:
                self._reason = "its launcher is gone"
            else:
                self._launchers.append(launcher)

    def catch_signals(self) -> None:
        """From now on the signals ask this rank to save instead of killing it."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._remember)

    def reason(self) -> str:
        """Why this rank should stop; empty while it should not."""
        if not self._reason and os.getppid() != self._parent:
            self._reason = "its parent process is gone"
        if not self._reason and not all(is_alive(launcher) for launcher in self._launchers):
            self._reason = "its launcher is gone"
        return self._reason

    def _remember(self, number: int, frame: types.FrameType | None) -> None:
        self._reason = signal.Signals(number).name


def make_launch_id() -> str:
    """An id of this process by which its ranks find it, and it its ranks."""
    return f"{name_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def name_machine() -> str:
    """A name of this machine's process table: where it is the same, process numbers mean the same processes."""
    boot, table = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    parts = [socket.gethostname()]  # not enough: cloned machines and containers may share it
    if boot.exists() and table.is_symlink():
        parts += [boot.read_text(encoding="ascii"), os.readlink(table)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def is_launcher(process: psutil.Process) -> bool:
    """Whether the process runs one of LAUNCHERS itself, not a shell whose command merely mentions one."""
    try:
        command = process.cmdline()[:4]  # python -u -m module, or python path/to/deepspeed
    except psutil.Error:  # an ancestor of another user cannot be read, and is none of ours
        return False
    return "python" in "".join(command[:1]) and any(Path(argument).name in LAUNCHERS for argument in command)


def is_orphaned_node_launcher(process: psutil.Process) -> bool:
    """Whether it is DeepSpeed's launcher of one host, left to process 1 by a runner that died before we looked."""
    try:
        return NODE_LAUNCHER in process.cmdline()[:4] and process.ppid() == 1
    except psutil.Error:
        return False


def is_alive(process: psutil.Process) -> bool:
    """Whether the process still runs; one that ended and was not yet waited for does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
