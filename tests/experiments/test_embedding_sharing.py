"""The experiment's command, on a model and a text that take seconds. Figures are docs/reproduction.md's."""

from pathlib import Path

import pytest

from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.run_config import load_run_config
from experiments.embedding_sharing import FOLDER, main
from experiments.sharing_runs import Plan, Run, plan_runs
from tests.trainer.tiny_run import SMALLEST

SMALL = [
    *(key for key in SMALLEST if not key.startswith("schedule")),
    *("schedule.total_steps=6", "schedule.warmup_steps=2", "log.every_steps=3", "checkpoint.every_steps=3"),
    *("evaluate.every_steps=3", "evaluate.num_sequences=8"),
]


def call(shards: Path, output: Path, *arguments: str) -> int:
    words = ["--shards", str(shards), "--output", str(output), "--processes", "1", "--seeds", "1", *arguments]
    return main([*words, "--set", *SMALL])


@pytest.mark.parametrize("name", ["sharing_cpu.toml", "sharing_gpu.toml"])
def test_recipes_differ_from_run_to_run_in_the_sharing_alone(name: str) -> None:
    plan = Plan(str(FOLDER / name), "fp32_cpu", 1, Path("shards"), ())
    runs = plan_runs(Path("x"), ["es", "gdes", "mlm"], 2)
    assert [(run.variant, run.seed) for run in runs[:4]] == [("es", 1), ("gdes", 1), ("mlm", 1), ("es", 2)]
    shared, disentangled, plain = (load_run_config(plan.recipe, run.overrides(plan)) for run in runs[:3])
    assert shared.model.embedding_sharing == "es" and disentangled.model.embedding_sharing == "gdes"
    assert shared.optimizer == disentangled.optimizer and plain.optimizer.update == "mlm"
    assert plain.model.generator_num_hidden_layers == shared.model.num_hidden_layers
    # all checkpoints are kept, as what is measured of them is drawn over the steps
    assert shared.checkpoint.keep_every_steps == shared.checkpoint.every_steps
    assert shared.schedule.total_steps % shared.checkpoint.every_steps == 0


def test_recipe_of_plain_mlm_is_the_encoder_of_the_others_alone() -> None:
    alone = load_run_config(str(FOLDER / "mlm_hour_cpu.toml"), [])
    pair = load_run_config(str(FOLDER / "sharing_cpu.toml"), [])
    assert alone.optimizer.update == "mlm"
    assert alone.model.generator(8000) == pair.model.discriminator(8000)
    assert (alone.data, alone.batch.global_sequences) == (pair.data, pair.batch.global_sequences)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--variants", "gdse"], "--variants gdse: it must be one of es, nes, gdes, mlm"),
        (["--minutes", "0"], "--minutes is 0.0"),
        (["--recipe", "no/such.toml"], "recipe no/such.toml does not exist"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(tmp_path, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_runs_are_trained_measured_and_told_and_the_same_command_goes_on(shards: Path, tmp_path: Path) -> None:
    assert call(shards, tmp_path, "--variants", "gdes", "mlm", "--minutes", "0.001") == 85
    assert call(shards, tmp_path, "--variants", "gdes", "mlm", "--minutes", "20") == 0
    page = (tmp_path / "sharing.md").read_text()
    assert "| gdes | 1 |" in page and "| mlm | 1 |" in page
    run = Run("gdes", 1, tmp_path / "runs" / "gdes_1")
    for name in ("embedding_cosine.jsonl", "gradient_conflict.jsonl"):
        assert [row["step"] for row in read_rows(run.folder / name)] == [3, 6]
    changed = (run.exported / "model.safetensors").stat().st_mtime
    assert call(shards, tmp_path, "--variants", "gdes", "mlm") == 0  # nothing is done twice
    assert (run.exported / "model.safetensors").stat().st_mtime == changed
    assert not (tmp_path / "runs" / "mlm_1" / "gradient_conflict.jsonl").exists()
