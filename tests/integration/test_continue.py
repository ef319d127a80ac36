"""Runs that begin with other weights, through the real command: the first evaluation, a resume, a longer phase.

One rank each, without the launcher: what two ranks add is tested by test_resume.py.
"""

import shutil
import sys
from pathlib import Path

import pytest

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.checkpoint import list_checkpoints
from disentangled.trainer.launch import TRAIN_MODULE
from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.run_folder import FIRST_FILES
from tests.integration.finished_run import differing_names, last_state, rows_without_timings
from tests.launching import Finished, run_command
from tests.trainer.published_folders import save_trunk
from tests.trainer.tiny_run import SMALLEST, tiny_config

TOTAL_STEPS = 8
WARMUP_STEPS = 5


def continue_run(shards: Path, checkpoint: Path, folder: Path, *overrides: str, engine: str = "fp32_cpu") -> Finished:
    """A run of TOTAL_STEPS with a checkpoint every two."""
    return run_command(
        sys.executable, "-m", TRAIN_MODULE, "--recipe", "tiny", "--engine", engine, *SMALLEST,
        f"data.shards={shards}", f"run.dir={folder}", f"continue_from.checkpoint={checkpoint}",
        f"schedule.total_steps={TOTAL_STEPS}", "log.every_steps=2", "log.tensorboard=false",
        "evaluate.num_sequences=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9",
        "model.hidden_dropout_prob=0.1", *overrides,
    )  # fmt: skip


@pytest.mark.slow  # three runs
@pytest.mark.parametrize("engine", ["fp32_cpu", "zero2_bf16"])
def test_continued_run_resumes_inside_the_generators_warmup_and_goes_on_longer(
    shards: Path, tmp_path: Path, engine: str
) -> None:
    config = tiny_config(shards).model.discriminator(load_manifest(shards).vocab_size)
    save_trunk(tmp_path / "hub", config, (shards / "spm.model").read_bytes())
    straight, folder = tmp_path / "straight", tmp_path / "run"
    warmup = f"continue_from.generator_warmup_steps={WARMUP_STEPS}"
    finished = continue_run(shards, tmp_path / "hub", straight, warmup, engine=engine)
    assert finished.code == 0, finished
    for line in ("E_G = E_D: no generator is given", "initialised: model.safetensors has none", "generator alone",
                 "step 0/8  held out: mlm ", f"the generator trains alone for {WARMUP_STEPS} steps"):  # fmt: skip
        assert line in finished.stdout, finished
    rows = read_rows(straight / "metrics.jsonl")
    assert rows[0]["step"] == 0 and {"validation_mlm_loss", "validation_rtd_loss"} <= rows[0].keys()
    assert [row["step"] for row in rows if "mlm_loss" in row and "rtd_loss" not in row] == [2, 4]
    assert [row["step"] for row in rows if "rtd_loss" in row] == [6, 8]

    shutil.copytree(straight, folder)
    for late in list_checkpoints(folder)[:-2]:
        shutil.rmtree(late)
    assert list_checkpoints(folder)[0].name == "step_00000004" and WARMUP_STEPS > 4
    (tmp_path / "hub").rename(tmp_path / "gone")  # a resumed run does not read it again
    finished = continue_run(shards, tmp_path / "hub", folder, warmup, engine=engine)
    assert finished.code == 0 and "resuming at step 4" in finished.stdout, finished
    assert differing_names(last_state(folder), last_state(straight)) == []
    assert rows_without_timings(folder) == rows_without_timings(straight)

    longer = ("data.sequence_length=64", "model.max_position_embeddings=128", "model.max_relative_positions=64")
    finished = continue_run(shards, straight, tmp_path / "long", *longer, engine=engine)
    assert finished.code == 0, finished
    for line in (f"continuing from {straight} (step_00000008 of a run)", "64 rows grown to 128", "step 0/8  held out"):
        assert line in finished.stdout, finished
    last, first = rows[-1], read_rows(tmp_path / "long/metrics.jsonl")[0]
    assert first["validation_mlm_loss"] == pytest.approx(last["validation_mlm_loss"], rel=0.1)


@pytest.mark.slow
def test_checkpoint_that_does_not_fit_is_one_line_and_no_run(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, "model.hidden_act=relu").model.discriminator(load_manifest(shards).vocab_size)
    save_trunk(tmp_path / "hub", config, (shards / "spm.model").read_bytes())
    finished = continue_run(shards, tmp_path / "hub", tmp_path / "run")
    assert finished.code == 2 and finished.stderr.count("\n") == 1, finished
    assert "hidden_act 'relu'" in finished.stderr and "set model.hidden_act=relu" in finished.stderr
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {*FIRST_FILES}  # another run may begin there
