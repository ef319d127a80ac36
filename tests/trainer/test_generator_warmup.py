"""The first steps of a continued run, in which the generator trains alone. Models are float64."""

import copy
from pathlib import Path

import pytest
import torch

from disentangled.trainer.metrics import console_line
from tests.trainer.plain_engines import same_weights
from tests.trainer.test_rtd_step import parts_of, run_steps

WARMUP = ("continue_from.checkpoint=unread", "continue_from.generator_warmup_steps=3")


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_discriminator_rests_and_its_optimizer_does_not_age(shards: Path, sharing: str) -> None:
    parts = parts_of(shards, f"model.embedding_sharing={sharing}", *WARMUP)
    before = copy.deepcopy(parts)
    engines = parts.plain_engines(2)
    sums = run_steps(parts, engines, 3, accumulation=2)
    assert same_weights(parts.discriminator, before.discriminator)
    assert not engines.discriminator._optimizer.state
    assert not same_weights(parts.generator, before.generator)
    metrics = sums.take()
    assert metrics["mlm_loss"] > 0 and not any(name.startswith(("rtd", "replaced")) for name in metrics)
    rates = {"generator_learning_rate": 1e-4, "tokens_per_second": 1.0, "achieved_tflops": 1.0, "seconds_per_step": 1.0}
    assert "generator alone" in console_line({"step": 3, **metrics, **rates}, 20)


def test_generator_moves_as_it_does_beside_a_discriminator(shards: Path) -> None:
    alone, beside = parts_of(shards, *WARMUP), parts_of(shards)
    for parts in (alone, beside):
        run_steps(parts, parts.plain_engines(2), 3, accumulation=2)
    assert same_weights(alone.generator, beside.generator)  # gdes: no RTD gradient reaches it
    assert not same_weights(alone.discriminator, beside.discriminator)


def test_discriminator_moves_from_the_step_after(shards: Path) -> None:
    parts = parts_of(shards, *WARMUP)
    before = copy.deepcopy(parts.discriminator)
    engines = parts.plain_engines(1)
    sums = run_steps(parts, engines, 4, accumulation=1)
    assert not same_weights(parts.discriminator, before)
    ages = {int(state["step"]) for state in engines.discriminator._optimizer.state.values()}
    assert ages == {1} and len(engines.discriminator.learning_rates) == 1
    assert torch.isfinite(torch.tensor(sums.take()["rtd_loss"]))
