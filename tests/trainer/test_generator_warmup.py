"""The first steps of a continued run, in which the generator trains alone. Models are float64."""

import copy
from pathlib import Path

import pytest
import torch

from disentangled.model.published_names import WORD_EMBEDDINGS
from disentangled.trainer.metric_log import console_line
from tests.trainer.plain_engines import same_weights
from tests.trainer.test_rtd_step import parts_of, run_steps

WARMUP = ("continue_from.checkpoint=unread", "continue_from.generator_warmup_steps=3")


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_discriminator_rests_with_its_embeddings_and_its_optimizer_does_not_age(shards: Path, sharing: str) -> None:
    parts = parts_of(shards, f"model.embedding_sharing={sharing}", *WARMUP)
    before = copy.deepcopy(parts)
    engines = parts.plain_engines(2)
    sums = run_steps(parts, engines, 3, accumulation=2)
    assert same_weights(parts.discriminator, before.discriminator)
    assert not engines.discriminator._optimizer.state
    pairs = zip(parts.generator.named_parameters(), before.generator.parameters(), strict=True)
    assert [name for (name, now), then in pairs if torch.equal(now, then)] == [
        WORD_EMBEDDINGS
    ]  # E_G, which the other leans on
    metrics = sums.take()
    assert metrics["mlm_loss"] > 0 and not any(name.startswith(("rtd", "replaced")) for name in metrics)
    rates = {
        "generator_learning_rate": 1e-4,
        "tokens_per_second": 1.0,
        "achieved_tflops": 1.0,
        "remaining_seconds": 1.0,
    }
    assert "generator alone" in console_line({"step": 3, **metrics, **rates}, 20)


def test_plain_masked_language_modelling_moves_the_whole_generator_and_nothing_else(shards: Path) -> None:
    parts = parts_of(shards, "optimizer.update=mlm")
    before = copy.deepcopy(parts)
    engines = parts.plain_engines(2)
    metrics = run_steps(parts, engines, 2, accumulation=2).take()
    assert same_weights(parts.discriminator, before.discriminator)
    pairs = zip(parts.generator.named_parameters(), before.generator.parameters(), strict=True)
    assert [name for (name, now), then in pairs if torch.equal(now, then)] == []
    assert metrics["mlm_loss"] > 0 and not any(name.startswith(("rtd", "replaced")) for name in metrics)


def test_plain_masked_language_modelling_is_what_the_generator_does_beside_a_discriminator(shards: Path) -> None:
    alone, paired = (parts_of(shards, f"optimizer.update={update}") for update in ("mlm", "decoupled"))
    for parts in (alone, paired):
        run_steps(parts, parts.plain_engines(1), 3, accumulation=1)
    assert same_weights(alone.generator, paired.generator)


def test_both_move_from_the_step_after(shards: Path) -> None:
    parts = parts_of(shards, *WARMUP)
    before = copy.deepcopy(parts)
    engines = parts.plain_engines(1)
    sums = run_steps(parts, engines, 4, accumulation=1)
    moved = before.generator.word_embeddings != parts.generator.word_embeddings
    assert moved.any() and not same_weights(parts.discriminator, before.discriminator)
    ages = {int(state["step"]) for state in engines.discriminator._optimizer.state.values()}
    assert ages == {1} and len(engines.discriminator.learning_rates) == 1
    assert torch.isfinite(torch.tensor(sums.take()["rtd_loss"]))
