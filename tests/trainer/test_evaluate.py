import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from disentangled.kernels.counter_rng import Stream
from disentangled.trainer import evaluate as evaluation
from disentangled.trainer.evaluate import choose_windows, evaluate, evaluation_sampling
from disentangled.trainer.metric_log import console_line
from disentangled.trainer.metrics import MetricSums
from tests.trainer.plain_engines import same_weights
from tests.trainer.tiny_run import CPU, Parts, build_parts, tiny_config

NUM_WINDOWS = 21  # no multiple of a pass of any split below


@dataclass(frozen=True)
class OneRank:
    """One rank of several, behind what evaluate.py uses of trainer/distributed.Ranks."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


ALONE = OneRank()


def run(parts: Parts, rank: OneRank = ALONE, num_windows: int = NUM_WINDOWS, judges: bool = True) -> dict[str, float]:
    return evaluate(
        parts.plain_engines(),
        parts.validation,
        evaluation_sampling(parts.sampling),
        rank,  # type: ignore[arg-type]
        np.arange(num_windows),
        parts.config.batch.micro_sequences,
        judges=judges,
    )


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_evaluate_judges_both_models_and_changes_neither(shards: Path, sharing: str) -> None:
    parts = build_parts(tiny_config(shards, f"model.embedding_sharing={sharing}"))
    untouched = build_parts(parts.config)
    has_gradients: list[bool] = []
    parts.discriminator.register_forward_hook(lambda *_: has_gradients.append(torch.is_grad_enabled()))
    metrics = run(parts)
    assert set(has_gradients) == {False}
    assert all(name.startswith("validation_") for name in metrics)
    # a generator that knows nothing pays log(vocabulary); a discriminator that knows nothing, log 2
    assert metrics["validation_mlm_loss"] == pytest.approx(math.log(parts.manifest.vocab_size), abs=0.3)
    assert metrics["validation_rtd_loss"] == pytest.approx(math.log(2), abs=0.1)
    assert 0.05 < metrics["validation_replaced_fraction"] < 0.2
    assert same_weights(parts.generator, untouched.generator)
    assert same_weights(parts.discriminator, untouched.discriminator)


def test_evaluate_can_leave_the_discriminator_out(shards: Path) -> None:
    parts = build_parts(tiny_config(shards))
    metrics = run(parts)
    asked: list[object] = []
    parts.discriminator.register_forward_hook(lambda *_: asked.append(1))
    alone = run(parts, judges=False)
    assert not asked and alone == {name: metrics[name] for name in alone}
    assert alone.keys() == {f"validation_{name}" for name in ("mlm_loss", "mlm_accuracy", "sampled_accuracy")}
    assert "rtd" not in console_line({"step": 3, **alone}, 20) and "rtd" in console_line({"step": 3, **metrics}, 20)


def test_evaluate_is_the_same_every_time_and_without_dropout(shards: Path) -> None:
    plain = build_parts(tiny_config(shards))
    noisy = build_parts(tiny_config(shards, "model.hidden_dropout_prob=0.5", "model.attention_probs_dropout_prob=0.5"))
    first = run(plain)
    assert run(plain) == first
    assert run(noisy) == first


@pytest.mark.parametrize(("world_size", "micro_sequences"), [(1, 8), (2, 4), (4, 1), (3, 8)])
def test_evaluate_does_not_depend_on_the_split_over_ranks(
    shards: Path, monkeypatch: pytest.MonkeyPatch, world_size: int, micro_sequences: int
) -> None:
    totals: list[torch.Tensor] = []

    class Recording(MetricSums):
        def total(self) -> torch.Tensor:
            totals.append(super().total())
            return totals[-1]

    monkeypatch.setattr(evaluation, "MetricSums", Recording)

    def sum_over_ranks(size: int, micro: int) -> torch.Tensor:
        totals.clear()
        parts = build_parts(tiny_config(shards, f"batch.micro_sequences={micro}", "batch.global_sequences=24"))
        parts.generator.double()
        parts.discriminator.double()
        passes = []
        for rank in range(size):
            calls: list[None] = []
            parts.generator.register_forward_hook(lambda *_, calls=calls: calls.append(None))
            run(parts, OneRank(rank, size))
            passes.append(len(calls))
        assert len(set(passes)) == 1, "ZeRO-3 needs the same number of passes on every rank"
        return torch.stack(totals).sum(0)

    whole, split = sum_over_ranks(1, NUM_WINDOWS), sum_over_ranks(world_size, micro_sequences)
    # loss sums are rounded to 2^-20 once per pass; all the rest is counts
    torch.testing.assert_close(split, whole, rtol=0, atol=NUM_WINDOWS * 2.0**-20)
    assert float(whole[1]) > 0


def test_evaluate_of_few_windows_looks_at_those_alone(shards: Path) -> None:
    parts = build_parts(tiny_config(shards))
    batch = parts.validation.build([0, 1])
    sums = MetricSums(CPU)
    made = parts.generator(
        batch.original_ids, batch.layout(), batch.masked_rows, None, evaluation_sampling(parts.sampling)
    )
    sums.add_generator(made, batch.num_masked)
    assert run(parts, num_windows=2)["validation_mlm_loss"] == sums.take()["mlm_loss"]
    assert run(parts, num_windows=3)["validation_mlm_loss"] != run(parts, num_windows=2)["validation_mlm_loss"]


def test_evaluation_draws_from_streams_of_its_own(shards: Path) -> None:
    parts = build_parts(tiny_config(shards))
    own = evaluation_sampling(parts.sampling)
    assert own.stream == Stream.EVALUATION_REPLACEMENT and own.banned is parts.sampling.banned
    assert parts.sampling.stream == Stream.REPLACEMENT


def test_windows_are_chosen_at_even_distances() -> None:
    assert choose_windows(3, 10).tolist() == [0, 1, 2]
    assert choose_windows(10, 4).tolist() == [0, 2, 5, 7]
    assert choose_windows(10, 10).tolist() == list(range(10))
