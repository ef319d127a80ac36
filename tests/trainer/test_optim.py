from pathlib import Path

import pytest
from torch import nn

from disentangled.trainer.optim import build_optimizer, peak_learning_rates
from disentangled.trainer.sections import OptimizerSection
from tests.trainer.tiny_run import build_parts, tiny_config

NEVER_DECAY = ("bias", "LayerNorm.weight")


def names_of(model: nn.Module, group: dict[str, list[nn.Parameter]]) -> list[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return [by_id[id(parameter)] for parameter in group["params"]]


@pytest.mark.parametrize("which", ["generator", "discriminator"])
def test_build_optimizer_puts_each_parameter_into_one_of_two_groups(shards: Path, which: str) -> None:
    model = getattr(build_parts(tiny_config(shards)), which)
    section = OptimizerSection(weight_decay=0.03, beta1=0.8, beta2=0.95, epsilon=1e-5)
    optimizer = build_optimizer(model, section, 7e-4)
    decay, no_decay = optimizer.param_groups
    assert sorted(names_of(model, decay) + names_of(model, no_decay)) == sorted(n for n, _ in model.named_parameters())
    assert all(name.endswith(NEVER_DECAY) for name in names_of(model, no_decay))
    assert not any(name.endswith(NEVER_DECAY) for name in names_of(model, decay))
    assert (decay["weight_decay"], no_decay["weight_decay"]) == (0.03, 0.0)
    assert all(g["lr"] == 7e-4 and g["betas"] == (0.8, 0.95) and g["eps"] == 1e-5 for g in optimizer.param_groups)


def test_parameter_sets_are_those_of_gdes(shards: Path) -> None:
    parts = build_parts(tiny_config(shards, "model.embedding_sharing=gdes"))
    of_generator = dict(parts.generator.named_parameters())
    of_discriminator = dict(parts.discriminator.named_parameters())
    assert "deberta.embeddings.word_embeddings.weight" in of_generator
    assert "deberta.embeddings.word_embeddings_delta.weight" in of_discriminator
    assert "deberta.embeddings.word_embeddings.weight" not in of_discriminator
    assert not {id(p) for p in of_generator.values()} & {id(p) for p in of_discriminator.values()}


def test_peak_learning_rates_are_apart_only_where_asked_for() -> None:
    assert peak_learning_rates(OptimizerSection(learning_rate=1e-3)) == (1e-3, 1e-3)
    both = OptimizerSection(learning_rate=1e-3, discriminator_learning_rate=2e-4)
    assert peak_learning_rates(both) == (1e-3, 2e-4)
