from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import nn

from disentangled.trainer.adamw import AdamW
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


def build(zero_stage: int = 0, **keys: Any) -> torch.optim.Optimizer:
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    return build_optimizer(model, OptimizerSection(**keys), 1e-3, zero_stage)


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, torch.optim.AdamW),
        ({"bias_correction": False}, AdamW),
        ({"kind": "stable_adamw"}, AdamW),
        ({"kind": "torch.optim.RAdam"}, torch.optim.RAdam),
    ],
)
def test_kind_names_the_optimizer(keys: dict[str, Any], kind: type) -> None:
    optimizer = build(beta2=0.95, **keys)
    assert type(optimizer) is kind
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    assert all(g["lr"] == 1e-3 and g["betas"] == (0.9, 0.95) and g["eps"] == 1e-6 for g in optimizer.param_groups)


@pytest.mark.parametrize(("device", "fused"), [("cpu", True), ("cuda", True), ("hpu", None)])
def test_adamw_is_torchs_fused_one_on_cpus_and_gpus(
    device: str, fused: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_accelerator(), "device_name", lambda index=None: device)
    assert all(group["fused"] is fused for group in build().param_groups)


def test_options_are_arguments_of_a_librarys_class() -> None:
    optimizer = build(kind="torch.optim.SGD", options=("momentum=0.9", "nesterov=true"))
    assert all(group["momentum"] == 0.9 and group["nesterov"] is True for group in optimizer.param_groups)
    two = build(kind="torch.optim.Adafactor", options=("eps=[1e-20,1e-2]",))  # not the one of Adam
    assert all(list(group["eps"]) == [1e-20, 1e-2] for group in two.param_groups)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kind": "lion"}, "optimizer.kind is 'lion': it must be one of adamw, stable_adamw, a dotted path"),
        ({"kind": "no_such.Thing"}, "optimizer.kind is 'no_such.Thing': no_such cannot be imported .*: install it"),
        ({"kind": "torch.optim.Adamm"}, "must name a subclass of torch.optim.Optimizer"),
        ({"kind": "torch.nn.Linear"}, "must name a subclass of torch.optim.Optimizer"),
        ({"kind": "torch.optim.SGD", "options": ("momentun=0.9",)}, "unknown key 'momentun': did you mean 'momentum'"),
        ({"kind": "torch.optim.SGD", "options": ("momentum",)}, "'momentum': write name=value"),
        ({"kind": "torch.optim.SGD", "options": ("momentum=high",)}, "'momentum=high': the value must be TOML"),
        ({"kind": "torch.optim.SGD", "options": ("lr=1",)}, "'lr=1': set optimizer.learning_rate instead"),
        ({"kind": "torch.optim.RAdam", "options": ("betas=[0,1]",)}, "set optimizer.beta1 and beta2 instead"),
        ({"kind": "torch.optim.Rprop"}, "has no weight decay: set optimizer.weight_decay=0"),
        ({"options": ("momentum=0.9",)}, "only a library's class takes options"),
        ({"kind": "torch.optim.SGD", "bias_correction": False}, "only adamw and stable_adamw have the choice"),
        ({"kind": "torch.optim.LBFGS", "weight_decay": 0.0}, "optimizer.kind torch.optim.LBFGS cannot step"),
        ({"kind": "torch.optim.LBFGS"}, "has no weight decay: set optimizer.weight_decay=0"),
    ],
)
def test_kind_that_cannot_be_is_an_error_that_says_why(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        build(**keys)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("name", ["SGD", "RAdam", "NAdam", "Adamax", "RMSprop", "ASGD", "Adadelta"])
def test_optimizer_that_works_element_by_element_is_taken_at_every_stage(name: str) -> None:
    for stage in range(4):
        build(stage, kind=f"torch.optim.{name}")


@pytest.mark.parametrize("name", ["Adafactor", "Adagrad"])
def test_optimizer_that_looks_at_whole_parameters_is_refused_where_they_are_cut(name: str) -> None:
    build(0, kind=f"torch.optim.{name}")
    for stage in (1, 2, 3):
        with pytest.raises(ValueError, match=f"looks at whole parameters, which ZeRO stage {stage} cuts: use an --eng"):
            build(stage, kind=f"torch.optim.{name}")
