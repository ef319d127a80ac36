"""Starts a run that can be stopped: `python -m disentangled.trainer.launch [DeepSpeed's options] [--] --recipe R ...`.

What: `deepspeed` with trainer/train.py, in a session of its own, so that a Ctrl-C does not reach DeepSpeed's launchers,
which would end the ranks before they have saved. TERM, INT, USR1 and a closed terminal (HUP) are passed to all ranks on
this host; the ranks agree before each step, so those on other hosts stop too. Then it waits for the save, however long.

Arguments: `--recipe R`, `--engine E` and `section.key=value` go to the trainer, all others to DeepSpeed. A `--` says it
explicitly: what is before it is DeepSpeed's, what is behind it the trainer's.

Exit codes: 0 done; 85 stopped when asked to, nothing lost: run the same command again; 86 a rank made no progress
(its stacks are in the run's folder): run it again too; 2 something to mend, in one line; any other is that of the rank
that failed first (128 + N for signal N).

Nothing is left behind: ranks whose launchers vanished save and leave by themselves (trainer/interrupt.py), and where
DeepSpeed's launchers died but this process lives, it adopts the ranks and waits for them.
Used by: users, trainer/demo.py. Tested by tests/trainer/test_launch.py and tests/integration/test_signals.py.
"""

import argparse
import contextlib
import ctypes
import itertools
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch

from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.foreign_launchers import forwarding_words, meeting_point, module_words
from disentangled.trainer.interrupt import EXIT_SAVED, STOP_SIGNALS, is_alive, make_launch_id

TRAIN_MODULE = "disentangled.trainer.train"
DEFAULT_HOSTFILE = Path("/job/hostfile")  # DeepSpeed's
FIRST_PORT, FIRST_EPHEMERAL_PORT = 20_000, 32_768
POLL_SECONDS = 0.1
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the launcher; returns its exit code."""
    try:
        deepspeed_options, trainer_arguments = split_arguments(sys.argv[1:] if arguments is None else arguments)
        meeting = meeting_point(deepspeed_options)
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    launch_id = make_launch_id()
    requests = StopRequests(launch_id)
    adopt_orphans()
    if not torch.accelerator.is_available():
        say("PyTorch finds no accelerator: running on the CPU")
    environment = os.environ | {"PATH": searchable_path(os.environ.get("PATH", os.defpath))} | meeting
    command = build_command(deepspeed_options, trainer_arguments, launch_id)
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    return wait_for_run(child, requests)


class StopRequests:
    """The signals that ask this process to stop; making one takes them over, but for those that nohup ignores."""

    def __init__(self, launch_id: str) -> None:
        self.launch_id = launch_id
        self.received: list[signal.Signals] = []
        self._num_announced = 0
        self._told: set[psutil.Process] = set()
        for number in (*STOP_SIGNALS, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: types.FrameType | None) -> None:
        self.received.append(signal.Signals(number))

    def pass_on(self) -> None:
        """Once stopping was asked for: send SIGTERM to each rank on this host that has not got it yet."""
        for number in self.received[self._num_announced :]:
            again = "still saving" if self._num_announced else "the ranks save and leave"
            say(f"{number.name}: {again}, waiting for them")
            self._num_announced += 1
        if not self.received:
            return
        for process in find_processes(self.launch_id):
            if process not in self._told and is_rank(process):
                self._told.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """DeepSpeed's options and the trainer's arguments.

    Raises:
        ValueError: no --recipe or no --engine, or a word that belongs to no option.
    """
    if "--" in arguments:
        place = list(arguments).index("--")
        deepspeed_options, trainer_arguments = list(arguments[:place]), list(arguments[place + 1 :])
        _make_parser().parse_intermixed_args(trainer_arguments)
        return deepspeed_options, trainer_arguments
    options, others = _make_parser(overrides=False).parse_known_args(arguments)
    overrides = [word for word in others if _is_override(word)]
    deepspeed_options = [word for word in others if not _is_override(word)]
    before = ""
    for word in deepspeed_options:
        if not word.startswith("-") and not before.startswith("-"):
            raise ValueError(f"{word!r} belongs to no option: a recipe key is changed by section.key=value")
        before = word
    return deepspeed_options, ["--recipe", options.recipe, "--engine", options.engine, *overrides]


def build_command(deepspeed_options: Sequence[str], trainer_arguments: Sequence[str], launch_id: str) -> list[str]:
    """The command line of DeepSpeed's launcher."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"]
    named = [option.partition("=")[0] for option in deepspeed_options]
    if not {"--master_port", "--hostfile", "-H"} & set(named) and not DEFAULT_HOSTFILE.exists():
        command += ["--master_port", str(find_free_port())]  # several runs on one machine do not meet
    command += [*deepspeed_options, *forwarding_words(deepspeed_options)]
    return [*command, *module_words(deepspeed_options, TRAIN_MODULE), "--launch-id", launch_id, *trainer_arguments]


def searchable_path(path: str) -> str:
    """PATH without folders that this user may not enter, as `su` leaves them there.

    Where there is one, starting a program that does not exist fails as forbidden and not as missing, which DeepSpeed,
    looking for numactl, does not expect.
    """
    return os.pathsep.join(folder for folder in path.split(os.pathsep) if os.access(folder, os.X_OK))


def wait_for_run(child: subprocess.Popen[bytes], requests: StopRequests) -> int:
    """Wait until DeepSpeed's launcher `child` and all processes of the launch have ended; returns our exit code."""
    while child.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(POLL_SECONDS)
        requests.pass_on()
    codes: list[int] = []
    while True:
        orphans = find_processes(requests.launch_id)
        while any(is_alive(process) for process in orphans):
            time.sleep(POLL_SECONDS)
            requests.pass_on()
        # one that forked and ended while processes were listed was not found, and its child was not either; but it is
        # an ended child of ours: while there are such, list again
        ended = [code for code in map(code_of_child, psutil.Process().children()) if code is not None]
        codes += ended
        if not orphans and not ended:
            break
    return exit_code(child.returncode, codes, bool(requests.received))


def exit_code(child_code: int, orphan_codes: Sequence[int], was_stopped: bool) -> int:
    """This command's exit code.

    Args:
        child_code: DeepSpeed's launcher's; negative for a signal. Above 0 it is a rank's. Otherwise a launcher may have
            been killed, of which DeepSpeed makes 0 too, and what outlived it knows more.
        orphan_codes: those of ranks, and of the workers they forked, that outlived a launcher.
        was_stopped: whether this process was asked to stop.
    """
    if child_code <= 0 and orphan_codes:
        failures = [code for code in orphan_codes if code not in (0, EXIT_SAVED)]
        child_code = failures[0] if failures else max(orphan_codes)
    if child_code > 192:  # DeepSpeed hands on a rank's -N for signal N, which arrives as one unsigned byte
        child_code -= 256
    code = 128 - child_code if child_code < 0 else child_code
    if was_stopped and code == 128 + signal.SIGTERM:  # later, ranks catch it
        say("stopped before the training began")
        return EXIT_SAVED
    return code


def find_processes(launch_id: str) -> list[psutil.Process]:
    """All running processes of the launch on this host: DeepSpeed's launchers and the ranks."""
    return [process for process in psutil.process_iter(["cmdline"]) if launch_id in (process.info["cmdline"] or ())]


def is_rank(process: psutil.Process) -> bool:
    """Whether the process runs the trainer itself: DeepSpeed's launchers name its module behind their own options."""
    command = process.info["cmdline"]
    return ("-m", TRAIN_MODULE) in itertools.pairwise(command)


def code_of_child(process: psutil.Process) -> int | None:
    """The exit code of a process that has ended; None where it was no child of ours, so that its code is not for us."""
    try:
        code: int | None = process.wait(0)
    except psutil.TimeoutExpired:  # ended, and its own parent has not asked yet
        return None
    return code


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent dies, so that their exit codes reach it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def find_free_port() -> int:
    """A TCP port that nobody listens on, and that no connection takes before the ranks do: below the ephemeral ones."""
    while True:
        port = FIRST_PORT + secrets.randbelow(FIRST_EPHEMERAL_PORT - FIRST_PORT)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port


def _is_override(word: str) -> bool:
    return "=" in word and not word.startswith("-")


def _make_parser(overrides: bool = True) -> OneLineParser:
    parser = OneLineParser(
        prog="python -m disentangled.trainer.launch",
        usage="%(prog)s [DeepSpeed's options] [--] --recipe R --engine E [section.key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="DeepSpeed's options, such as --num_accelerators N and --hostfile FILE: deepspeed --help",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--engine", required=True, help="DeepSpeed JSON, or the name of a shipped one")
    if overrides:
        parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="recipe keys to change")
    return parser


if __name__ == "__main__":
    sys.exit(main())
