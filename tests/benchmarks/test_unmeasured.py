import importlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import unmeasured


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run on a GPU; `drop_in` ends badly, `ops` not in time."""
    begun: list[list[str]] = []

    def run(command: list[str], timeout: float) -> Any:
        begun.append(command)
        if "benchmarks.ops" in command:
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, int("benchmarks.drop_in" in command))

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(unmeasured, "device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(unmeasured.subprocess, "run", run)
    return begun


def outcomes_of(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("---")]
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_programs_without_results_run_once_and_say_how_they_ended(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("hidden", "scaling", "step", "embedding", "masked_lm"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    assert unmeasured.main(["--output", str(tmp_path), "--shards", "s"]) == 1
    assert [command[2] for command in commands] == ["benchmarks.first_light", "benchmarks.drop_in", "benchmarks.ops"]
    assert commands[0][3:] == ["--shards", "s", "--output", f"{tmp_path}/first_light.jsonl"]
    outcomes = outcomes_of(capsys)
    assert outcomes["masked_lm"].startswith("has results")
    assert outcomes["first_light"].startswith("measured in")
    assert outcomes["drop_in"] == "failed with exit code 1"
    assert outcomes["ops"].startswith("failed: cut off")


def test_again_runs_what_has_results(commands: list[list[str]], tmp_path: Path) -> None:
    (tmp_path / "step.jsonl").write_text("{}\n")
    unmeasured.main(["--output", str(tmp_path), "--shards", "s", "--again"])
    assert [command[2] for command in commands[:2]] == ["benchmarks.first_light", "benchmarks.hidden"]


def test_what_cannot_begin_is_named(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unmeasured.main(["--output", str(tmp_path), "--minutes", "0.1", "--shards", "s"]) == 0
    assert commands == []
    assert all("no time was left" in outcome for outcome in outcomes_of(capsys).values())
    unmeasured.main(["--output", str(tmp_path)])
    assert outcomes_of(capsys)["first_light"] == "unmeasured: needs --shards DIR"


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure")
def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert unmeasured.main(["--output", str(tmp_path)]) == 0
    assert set(outcomes_of(capsys).values()) == {"unmeasured: this machine has no GPU"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", unmeasured.PROGRAMS, ids=lambda program: program.name)
def test_programs_and_their_options_exist(program: unmeasured.Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"benchmarks.{program.name}").main(["--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out
    assert all(word in usage for word in program.arguments if word.startswith("--"))
