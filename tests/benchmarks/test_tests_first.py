from types import SimpleNamespace

import pytest
import torch

from benchmarks import tests_first
from benchmarks.tests_first import own_tests_pass, pytest_command
from tests.benchmarks.own_tests import end_own_tests

SELECTED = "tests/benchmarks/test_tests_first.py::test_on_a_gpu_several_processes_share_them"


def test_red_ones_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    end_own_tests(monkeypatch, code=0)
    assert own_tests_pass("tests") and not capsys.readouterr().out
    end_own_tests(monkeypatch, code=5)  # pytest's, where none was selected
    assert not own_tests_pass("tests")
    assert "red tests, so no numbers: " in capsys.readouterr().out


def test_taking_longer_is_red(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tests_first, "pytest_command", lambda *selection: ["sleep", "60"])
    assert not own_tests_pass("tests", seconds=0.1)
    assert "sleep 60" in capsys.readouterr().out


def test_on_a_gpu_several_processes_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pytest_command("tests/kernels")[1:] == ["-m", "pytest", "-q", "tests/kernels"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tests_first, "os", SimpleNamespace(cpu_count=lambda: 16))
    assert pytest_command("tests/kernels")[3:] == ["-q", "--numprocesses", "8", "tests/kernels"]


def test_the_command_runs_what_is_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # so in several processes
    monkeypatch.setattr(tests_first, "MOST_PROCESSES", 1)
    assert own_tests_pass(SELECTED)
    assert not own_tests_pass(f"{SELECTED}_not")
