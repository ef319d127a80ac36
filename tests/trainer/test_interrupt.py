import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from disentangled.trainer import interrupt
from disentangled.trainer.interrupt import STOP_SIGNALS, Interrupt, is_alive, is_launcher, make_launch_id, name_machine

SLEEP = "import time; time.sleep(100)"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that stands for a launcher."""
    process = subprocess.Popen([sys.executable, "-c", SLEEP])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.usefixtures("restored_signals")
def test_signal_is_remembered_and_kills_nothing(number: signal.Signals) -> None:
    request = Interrupt()
    request.catch_signals()
    assert request.reason() == ""
    os.kill(os.getpid(), number)
    assert request.reason() == number.name


@pytest.mark.usefixtures("restored_signals")
def test_signals_are_left_alone_until_training_begins() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    Interrupt()
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


def test_launcher_that_vanishes_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    request = Interrupt(f"{name_machine()}-{sleeper.pid}-abcd")
    assert request.reason() == ""
    sleeper.kill()
    deadline = time.monotonic() + 30
    while not request.reason() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert request.reason() == "its launcher is gone"
    assert not is_alive(psutil.Process(sleeper.pid))  # it is still listed, as nobody has waited for it yet


def test_launcher_that_vanished_before_the_rank_looked_is_noticed(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert Interrupt(f"{name_machine()}-{sleeper.pid}-abcd").reason() == "its launcher is gone"


def test_launcher_on_another_machine_is_none_of_ours(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()
    assert Interrupt(f"0123456789ab-{sleeper.pid}-abcd").reason() == ""


def test_parent_that_vanishes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Interrupt()
    assert request.reason() == ""
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert request.reason() == "its parent process is gone"


def test_launch_id_names_this_process_and_never_repeats() -> None:
    one, two = make_launch_id(), make_launch_id()
    assert one != two
    assert one.split("-")[:2] == [name_machine(), str(os.getpid())]
    assert Interrupt(one).reason() == ""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["/venv/bin/python", "-m", "disentangled.trainer.launch", "--num_accelerators", "2"], True),
        (["/venv/bin/python3", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x"], True),
        (["/venv/bin/python3", "-m", "deepspeed.launcher.runner"], True),
        (["/venv/bin/python3", "/venv/bin/deepspeed", "--module", "x"], True),
        (["/bin/sh", "-c", "deepspeed --module x; python -m disentangled.trainer.launch"], False),
        (["/bin/bash", "deepspeed"], False),
        (["tmux", "new", "-s", "deepspeed"], False),
        (["/venv/bin/python", "/home/me/deepspeed/notebook.py"], False),
        (["/venv/bin/python", "-m", "pytest", "tests", "deepspeed"], False),
        ([], False),
    ],
)
def test_launcher_is_told_from_a_shell_that_names_one(
    monkeypatch: pytest.MonkeyPatch, command: list[str], expected: bool
) -> None:
    process = psutil.Process()
    monkeypatch.setattr(process, "cmdline", lambda: command)
    assert is_launcher(process) == expected


def test_unreadable_ancestor_is_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    process = psutil.Process()

    def refuse() -> list[str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(process, "cmdline", refuse)
    assert not is_launcher(process)


@pytest.mark.parametrize(("parent", "reason"), [(1, "its launcher is gone"), (4321, "")])
def test_node_launcher_left_to_process_1_is_an_orphan(
    monkeypatch: pytest.MonkeyPatch, parent: int, reason: str
) -> None:
    node = psutil.Process()
    monkeypatch.setattr(node, "cmdline", lambda: ["python", "-u", "-m", "deepspeed.launcher.launch"])
    monkeypatch.setattr(node, "ppid", lambda: parent)
    monkeypatch.setattr(interrupt.psutil.Process, "parents", lambda process: [node])
    assert Interrupt().reason() == reason
