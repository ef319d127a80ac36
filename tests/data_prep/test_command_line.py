"""command_line.py: exit codes and the one line that goes with each."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from disentangled.data_prep.command_line import OneLineParser, run_command


def raise_error(error: BaseException) -> Callable[[], None]:
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("thing: rule:\n remedy"), 2, "error: thing: rule: remedy\n"),
        (KeyboardInterrupt(), 130, "error: interrupted: nothing was written\n"),
        (ChildProcessError("it ended"), 2, "error: it ended\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: permission denied\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            2,
            "error: /x: no space left on device: free some space there or name another --output\n",
        ),
    ],
)
def test_error_gives_one_line_and_its_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
):
    assert run_command(raise_error(error), "nothing was written") == code
    assert capsys.readouterr() == ("", line)


def test_fault_of_our_own_keeps_its_traceback():
    with pytest.raises(TypeError):
        run_command(raise_error(TypeError("a bug")), "nothing was written")


def test_sigterm_ends_the_command_and_the_handler_comes_back(capsys: pytest.CaptureFixture[str]):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_command(lambda: os.kill(os.getpid(), signal.SIGTERM), "nothing was written") == 143
        assert capsys.readouterr().err == "error: terminated: nothing was written\n"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_success_returns_0(capsys: pytest.CaptureFixture[str]):
    assert run_command(lambda: None, "nothing was written") == 0
    assert capsys.readouterr() == ("", "")


def test_parser_refuses_in_one_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        OneLineParser(prog="x").parse_args(["--nonsense"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --nonsense: see --help\n"


def test_closed_pipe_is_silent():
    script = (
        "import sys; from disentangled.data_prep.command_line import run_command\n"
        "sys.exit(run_command(lambda: [print('x' * 1000) for _ in range(1000)] and None, ''))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert process.stdout and process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
