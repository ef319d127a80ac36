"""A run that was interrupted ends as the one that was not: bit for bit on a CPU in fp32."""

import shutil
import sys
from pathlib import Path

import torch

from disentangled.trainer.checkpoint import list_checkpoints, load_state
from disentangled.trainer.launch import TRAIN_MODULE
from tests.integration.finished_run import (
    RUN,
    differing_names,
    last_state,
    launch_run,
    rows_without_timings,
    run_command_line,
)
from tests.launching import run_command


def test_straight_run_leaves_what_it_should(straight: Path) -> None:
    half = RUN.total_steps // 2
    assert [path.name for path in list_checkpoints(straight)] == [f"step_{step:08}" for step in (2 * half, half)]
    rows = rows_without_timings(straight)
    logged = [row["step"] for row in rows if "mlm_loss" in row]
    assert logged == [*range(RUN.every_steps, RUN.total_steps, RUN.every_steps), RUN.total_steps]
    assert [row["step"] for row in rows if "validation_mlm_loss" in row] == [40, 80, RUN.total_steps]
    assert {"step", "mlm_loss", "mlm_accuracy", "sampled_accuracy", "replaced_fraction", "rtd_loss", "rtd_auc",
            "rtd_balanced_accuracy", "delta_ratio", "generator_gradient_norm", "discriminator_gradient_norm",
            "generator_skipped_steps", "discriminator_skipped_steps", "generator_learning_rate",
            "discriminator_learning_rate", "consumed_samples"} <= rows[0].keys()  # fmt: skip
    assert rows[-1]["validation_mlm_loss"] < rows[0]["mlm_loss"]
    tensors = [value for value in last_state(straight).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) > 200 and all(value.isfinite().all() for value in tensors)


def test_run_with_a_torn_checkpoint_resumes_from_the_one_before_and_ends_the_same(
    straight: Path, shards: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    newest, older = list_checkpoints(folder)
    torn = next((newest / "generator").iterdir())
    torn.write_bytes(torn.read_bytes()[:-1000])
    finished = launch_run(shards, folder)
    assert finished.code == 0, finished
    warnings = finished.stderr.splitlines()
    assert len(warnings) == 1, finished
    assert all(words in warnings[0] for words in (str(newest), torn.name, "damaged", f"using {older}"))
    assert f"resuming at step {RUN.total_steps // 2}" in finished.stdout
    expected = last_state(straight)
    assert differing_names(last_state(folder), expected) == []
    assert rows_without_timings(folder) == rows_without_timings(straight)


def test_one_rank_needs_no_launcher(shards: Path, tmp_path: Path) -> None:
    command = run_command_line(shards, tmp_path / "run", "schedule.total_steps=3", "schedule.warmup_steps=1")
    finished = run_command(sys.executable, "-m", TRAIN_MODULE, *command[command.index("--recipe") :])
    assert finished.code == 0 and f"done at step 3: {tmp_path / 'run'}" in finished.stdout, finished
    assert load_state(list_checkpoints(tmp_path / "run")[0]).world_size == 1
