import json
import sys
from pathlib import Path

import pytest

from disentangled.trainer import plan
from disentangled.trainer.probe import cut_batch, describe_pace, seconds_of_step
from disentangled.trainer.probe_here import probe_here
from disentangled.trainer.run_config import load_run_config
from tests.integration.finished_run import run_command_line
from tests.launching import run_command
from tests.trainer.tiny_run import SMALLEST


def test_step_of_few_micro_batches_is_the_median_of_what_was_timed() -> None:
    assert seconds_of_step({3: [1.0, 9.0, 2.0]}, 3) == 2.0


def test_step_of_many_micro_batches_is_on_the_line_through_two_and_four() -> None:
    seconds = {4: [5.0, 5.0, 50.0], 2: [3.0, 3.0, 3.0]}  # 1 for the updates, 1 for each micro-batch
    assert seconds_of_step(seconds, 256) == pytest.approx(257.0)
    # noise alone: more micro-batches never take less time
    assert seconds_of_step({4: [2.9], 2: [3.0]}, 256) == 2.9


def test_probed_batch_is_one_rank_of_the_runs(shards: Path) -> None:
    sizes = (
        "batch.micro_sequences=4",
        "batch.global_sequences=8192",
        "batch.first_sequences=512",
        "batch.rise_steps=9",
    )
    config, accumulation = cut_batch(load_run_config("tiny", sizes), 64, 2)
    assert accumulation == 32
    assert (config.batch.global_sequences, config.batch.micro_sequences, config.batch.rise_steps) == (4 * 2 * 4, 4, 0)
    with pytest.raises(ValueError, match="not a multiple"):
        cut_batch(load_run_config("tiny", sizes), 3, 2)


def test_pace_is_told_in_days() -> None:
    assert describe_pace(86.4, 500_000) == "86.4 s a step: 1,000 steps per day, 500 days for 500,000 steps"


def test_what_is_wrong_is_one_line(capsys: pytest.CaptureFixture[str], shards: Path) -> None:
    assert plan.main(["--recipe", "tiny", "--probe-steps", "2", f"data.shards={shards}"]) == 2
    assert capsys.readouterr().err.strip().endswith("need the engine: add --engine FILE")


@pytest.mark.slow
def test_probe_is_near_the_run_itself(shards: Path, tmp_path: Path) -> None:
    """Steps of the run on two ranks, timed by its own log, and by the probe."""
    sizes = (*SMALLEST, "batch.global_sequences=16", "batch.micro_sequences=4", "log.every_steps=1")
    trained = run_command(*run_command_line(shards, tmp_path / "run", *sizes, "schedule.total_steps=20"))
    assert trained.code == 0, trained
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    taken = sorted(row["seconds_per_step"] for row in rows if "seconds_per_step" in row)[10]
    lines = probe_here("tiny", "fp32_cpu", [*sizes, f"data.shards={shards}"], 2, 10)
    probed = float(lines[0].split()[0])
    assert taken / 3 < probed < taken * 3, (taken, lines)  # two noisy cores: an order of magnitude would be a fault


@pytest.mark.slow
def test_probe_leaves_runs_alone(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = run_command(*run_command_line(shards, folder, "schedule.total_steps=4", "schedule.warmup_steps=0"))
    assert finished.code == 0, finished
    before = sorted(path.name for path in (folder / "checkpoints").iterdir())
    command = run_command_line(shards, folder, "schedule.total_steps=4", "schedule.warmup_steps=0")
    arguments = command[command.index("--recipe") :]
    probed = run_command(sys.executable, "-m", "disentangled.trainer.probe", *arguments)
    assert probed.code == 2 and "holds a run" in probed.stderr, probed
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == before
