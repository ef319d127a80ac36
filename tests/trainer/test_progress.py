"""The bar on a terminal (a pseudo-terminal here), in a file, and on a terminal that goes away."""

import contextlib
import errno
import io
import os
import pty
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from disentangled.trainer import progress
from disentangled.trainer.command_line import say

LINE = "step 20/40  a line of the log"


def run_loop(is_wanted: bool = True, in_the_middle: Callable[[], None] = lambda: None) -> None:
    with progress.ProgressBar(40, 10, is_wanted) as bar:
        bar.update(10, None)
        bar.update(15, 125.0)
        in_the_middle()
        say(LINE)
        bar.update(20, 120.0)
    say("end")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "REDRAW_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def run_on_terminal(monkeypatch: pytest.MonkeyPatch, is_wanted: bool = True, hang_up: bool = False) -> str:
    """What the loop sends to a terminal, without colours and movements."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8", buffering=1) as out:
        monkeypatch.setattr(sys, "stdout", out)
        run_loop(is_wanted, (lambda: os.close(ours)) if hang_up else lambda: None)
    return "" if hang_up else re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", read_all(ours))


def read_all(terminal: int) -> str:
    sent = b""
    with contextlib.suppress(OSError):  # how a terminal says that its other side is closed
        while block := os.read(terminal, 1 << 16):
            sent += block
    os.close(terminal)
    return sent.decode()


def test_bar_is_drawn_below_the_lines_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = run_on_terminal(monkeypatch)
    assert "15/40" in sent and "2:05 left" in sent
    assert f"{LINE}\r\n" in sent
    assert sent.index("step 20/40 \u2501") > sent.index("a line of the log")
    assert sent.rstrip().endswith("end")


def test_nothing_is_drawn_by_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_on_terminal(monkeypatch, is_wanted=False) == f"{LINE}\r\nend\r\n"


def test_a_terminal_that_is_gone_ends_the_bar_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_on_terminal(monkeypatch, hang_up=True) == ""


class FailingTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EIO, "Input/output error")


def test_a_bar_that_cannot_be_drawn_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", FailingTerminal())
    with progress.ProgressBar(40, 10, is_wanted=True) as bar:
        bar.update(11, 3.0)


def test_nothing_of_it_reaches_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        run_loop()
    assert (tmp_path / "out").read_text(encoding="utf-8") == f"{LINE}\nend\n"
