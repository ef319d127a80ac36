"""The two gradients over the embeddings against those of a training step, and the command on a run."""

import json
from pathlib import Path

import pytest
import torch

from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from experiments.gradient_conflict import CONFLICT_FILE, compare, gradients, main
from tests.trainer.test_export import write_checkpoint, write_run
from tests.trainer.tiny_run import CPU, build_parts, tiny_config


@pytest.mark.parametrize("sharing", ["es", "gdes", "nes"])
def test_gradients_are_those_of_a_training_step(shards: Path, sharing: str) -> None:
    """Neither model moves, so that both see the weights that the step saw; fp64 leaves no room for rounding."""
    parts = build_parts(tiny_config(shards, f"model.embedding_sharing={sharing}", "optimizer.gradient_clipping=0"))
    generator, discriminator = parts.generator.double(), parts.discriminator.double()
    batches = parts.training.step_batches(0, 2, 0, 1)
    counts = GlobalCounts(sum(b.num_masked for b in batches), sum(b.num_live for b in batches))
    step = RtdStep(parts.plain_engines(moves=False), parts.config, parts.sampling, world_size=1)
    step.run(batches, counts, 0, MetricSums(CPU))
    from_mlm, from_rtd = gradients(generator, discriminator, batches, parts.sampling, parts.config.optimizer.rtd_lambda)
    embeddings = discriminator.deberta.embeddings
    if sharing == "es":
        expected = {"E": (generator.word_embeddings.grad, from_mlm + from_rtd)}
    else:
        table = embeddings.word_embeddings_delta if sharing == "gdes" else embeddings.word_embeddings
        expected = {"G": (generator.word_embeddings.grad, from_mlm), "D": (table.weight.grad, from_rtd)}
    for made, wanted in expected.values():
        assert wanted.abs().max() > 0
        torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-12)


def test_comparison_of_gradients_worked_out_by_hand() -> None:
    one = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 1.0], [0.0, 0.0]])
    other = torch.tensor([[-1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [5.0, 0.0]])
    found = compare(one, other)
    assert found["opposed_rows"] == 0.5  # rows 0 and 1 are reached by both, 0 is opposed
    assert found["cosine"] == pytest.approx((-3 + 8) / (27**0.5 * 30**0.5))
    assert found["rtd_to_mlm_norm"] == pytest.approx((30 / 27) ** 0.5)


def test_command_measures_each_checkpoint(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    write_run(shards, run, "model.embedding_sharing=es")
    for step in (5, 10):
        write_checkpoint(shards, run, step, "model.embedding_sharing=es")
    assert main(["--run", str(run), "--sequences", "6"]) == 0
    rows = [json.loads(line) for line in (run / CONFLICT_FILE).read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10] and rows[0]["cosine"] != rows[1]["cosine"]
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and f"{rows[1]['cosine']:.4f}" in printed[2]


def test_runs_without_two_gradients_are_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(shards, tmp_path / "mlm", "optimizer.update=mlm")
    write_run(shards, tmp_path / "empty")
    for folder, words in (
        ("mlm", "it has no second gradient"),
        ("empty", "holds no checkpoint"),
        ("nothing", "holds no run"),
    ):
        assert main(["--run", str(tmp_path / folder)]) == 2
        assert words in capsys.readouterr().err
    assert main(["--run", str(tmp_path), "--sequences", "0"]) == 2
