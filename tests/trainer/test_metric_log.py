"""Where rows go: files, the console, TensorBoard and W&B, the last of which is a stand-in here."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from disentangled.trainer.metric_log import MetricLog, check_wandb, console_line, read_rows

TRAINING_ROW = {
    "step": 500_000.0,
    "mlm_loss": 12.345,
    "rtd_loss": 0.123,
    "rtd_auc": 0.999,
    "generator_learning_rate": 1e-4,
    "discriminator_learning_rate": 1e-4,
    "tokens_per_second": 12_345_678.9,
    "achieved_tflops": 12_345.678,
    "remaining_seconds": 8_553_600.0,
}
HOURS, PEAK_KNOWN = {"remaining_seconds": 99.9 * 3600}, {"model_flops_utilization": 0.456}
EVALUATION_ROW = {
    "step": 500_000.0,
    "validation_mlm_loss": 12.345,
    "validation_mlm_accuracy": 0.999,
    "validation_rtd_loss": 0.123,
    "validation_rtd_auc": 0.999,
}


def test_log_writes_a_row_to_file_and_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = MetricLog(tmp_path, 0, 100, tensorboard=True)
    log.write(TRAINING_ROW | {"step": 7})
    log.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [TRAINING_ROW | {"step": 7}]
    assert capsys.readouterr().out.startswith("step   7/100  mlm 12.345")
    assert any((tmp_path / "tensorboard").iterdir())


def test_log_of_a_resumed_run_drops_rows_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 5, "mlm_loss": 3.0}, {"step": 5, "validation_mlm_loss": 4.0}, {"step": 10, "mlm_loss": 2.0}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 15, "mlm_l')
    MetricLog(tmp_path, 5, 100, tensorboard=False).close()
    assert read_rows(path) == rows[:2]
    MetricLog(tmp_path, 0, 100, tensorboard=False).close()
    assert read_rows(path) == []


def test_log_killed_while_it_starts_keeps_the_old_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 5}\n')

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", die)
    with pytest.raises(KeyboardInterrupt):
        MetricLog(tmp_path, 5, 100, tensorboard=False)
    assert read_rows(path) == [{"step": 5}]


def test_read_rows_of_no_file_is_empty(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("row", [TRAINING_ROW, TRAINING_ROW | HOURS, TRAINING_ROW | PEAK_KNOWN, EVALUATION_ROW])
def test_console_line_has_at_most_100_characters(row: dict[str, float]) -> None:
    # the longest numbers of the paper's longest run
    line = console_line(row, 500_000)
    assert len(line) <= 100, line
    assert "\n" not in line


def test_console_line_shows_three_digits_of_each_rate() -> None:
    slow = {"tokens_per_second": 7_654.0, "achieved_tflops": 0.0481, "remaining_seconds": 5890.0, "step": 1000.0}
    line = console_line(TRAINING_ROW | slow, 20_000)
    assert line.endswith("lr 1.0e-4  7.65k tok/s 48.1G FLOP/s  1h38 left"), line


def test_console_line_shows_the_use_of_a_known_device() -> None:
    line = console_line(TRAINING_ROW | PEAK_KNOWN, 500_000)
    assert "12.3M tok/s 45.6% MFU  99d left" in line, line


def test_log_goes_on_where_the_terminal_is_gone(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = (
        "from pathlib import Path; from disentangled.trainer.metric_log import MetricLog\n"
        f"log = MetricLog(Path({str(tmp_path)!r}), 0, 100, False)\n"
        f"for step in (1, 2): log.write({EVALUATION_ROW!r} | {{'step': step}})\n"
        "log.close()"
    )
    try:
        finished = subprocess.run([sys.executable, "-c", code], stdout=writing, check=False)
    finally:
        os.close(writing)
    assert finished.returncode == 0
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


class FakeRun:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.logged: list[Any] = []

    def define_metric(self, *arguments: Any, **keywords: Any) -> None:
        self.logged.append((arguments, keywords))

    def log(self, row: dict[str, float]) -> None:
        self.logged.append(row)

    def finish(self) -> None:
        self.logged.append("finished")


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[FakeRun]:
    """Runs that a stand-in for wandb was asked to start."""
    started: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        started.append(FakeRun(**settings))
        return started[-1]

    fake = types.ModuleType("wandb")
    fake.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return started


def test_wandb_gets_each_row_and_a_resume_goes_on_with_its_run(tmp_path: Path, runs: list[FakeRun]) -> None:
    folder = tmp_path / "my_run"
    folder.mkdir()
    for first_step in (0, 7):
        log = MetricLog(folder, first_step, 100, tensorboard=False, wandb_config={"run": {"seed": 1}})
        log.write(TRAINING_ROW | {"step": first_step + 7})
        log.close()
    assert [run.logged for run in runs] == [
        [(("*",), {"step_metric": "step"}), TRAINING_ROW | {"step": step}, "finished"] for step in (7, 14)
    ]
    first, second = (run.settings for run in runs)
    assert first == second
    assert (first["project"], first["name"], first["resume"]) == ("disentangled", "my_run", "allow")
    assert first["config"] == {"run": {"seed": 1}} and first["dir"] == str(folder) and len(first["id"]) == 16


def test_wandb_is_left_alone_unless_asked_for(tmp_path: Path, runs: list[FakeRun]) -> None:
    MetricLog(tmp_path, 0, 100, tensorboard=False).close()
    assert runs == []


@pytest.mark.parametrize("leftover", [False, True])
def test_wandb_that_is_not_installed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leftover: bool
) -> None:
    # W&B leaves a folder of its name behind, which Python takes for a package without files
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    if leftover:
        (tmp_path / "wandb").mkdir()
    with pytest.raises(ValueError, match=r"pip install 'disentangled\[wandb\]', or set log.wandb=false") as caught:
        check_wandb(True)
    assert "\n" not in str(caught.value)
    check_wandb(False)


def test_wandb_that_is_installed_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    check_wandb(True)


def test_rows_wait_for_room_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class FullDisk:
        """A file with room for `room` bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.room = file, 30

        def write(self, data: bytes) -> int:
            if not self.room:
                raise OSError(28, "No space left on device")
            written = int(self.file.write(data[: self.room]))
            self.room -= written
            return written

        def close(self) -> None:
            self.file.close()

    log = MetricLog(tmp_path, 0, 10, tensorboard=False)
    disk = log._file = FullDisk(log._file)  # type: ignore[assignment]
    for step in (1, 2, 3):
        log.write(TRAINING_ROW | {"step": step})
    assert read_rows(tmp_path / "metrics.jsonl") == []
    warnings = capsys.readouterr().err.splitlines()
    assert [line.partition(" (")[0] for line in warnings] == [
        f"warning: step {step}: metrics.jsonl waits for room" for step in (2, 3)
    ]
    disk.room = 1 << 20
    log.write(TRAINING_ROW | {"step": 4})
    log.close()
    assert [row["step"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
