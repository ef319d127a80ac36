"""Fifty steps of pre-training with one implementation of an op and with another, from one seed: the same losses.

The ops are attention, the loss over the vocabulary, which also draws the replacements, and the residual norm, whose
reference is plain torch.

The allowance is derived: the reference is run in float32 and in float64, and what float32's rounding has moved its
losses by, so far, is what rounding may move anyone's. Twice that, as in tests/numerics.py, and one unit in the last
place of the loss. A wrong gradient moves the losses by far more (test_a_wrong_gradient_is_seen).
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import disentangled_attention, dispatch
from disentangled.kernels.masked_lm_loss import masked_lm_loss
from disentangled.kernels.residual_norm import residual_norm
from disentangled.model import attention, layer, mlm_head
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import RtdStep
from tests.trainer.test_rtd_step import counts_of, recorded
from tests.trainer.tiny_run import CPU, build_parts, tiny_config

NUM_STEPS = 50
# One layer and head each, rows of 16 tokens: Triton's interpreter takes about a second for a layer.
SETTINGS = (
    "model.num_hidden_layers=1", "model.generator_num_hidden_layers=1", "model.num_attention_heads=1",
    "model.hidden_size=16", "model.intermediate_size=32", "model.max_position_embeddings=32",
    "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", "data.sequence_length=16",
    "batch.global_sequences=1", "batch.micro_sequences=1", f"schedule.total_steps={NUM_STEPS}",
    "schedule.warmup_steps=4", "optimizer.learning_rate=5e-3",
)  # fmt: skip
OPS: dict[str, tuple[ModuleType, Callable[..., Any]]] = {
    "disentangled_attention": (attention, disentangled_attention),
    "masked_lm_loss": (mlm_head, masked_lm_loss),
    "residual_norm": (layer, residual_norm),
}


def train(shards: Path, dtype: torch.dtype = torch.float32, **ops: Callable[..., Any]) -> Tensor:
    """The losses of both models, float64 [2, steps], with these in the places of ops; of all others the reference."""
    parts = build_parts(tiny_config(shards, *SETTINGS))
    parts.generator.to(dtype)
    parts.discriminator.to(dtype)
    engines, generator, discriminator = recorded(parts.plain_engines())
    step = RtdStep(engines, parts.config, parts.sampling, world_size=1)
    with pytest.MonkeyPatch.context() as patch:
        for name, (module, _) in OPS.items():
            patch.setattr(module, name, ops.get(name, implementation(name, "reference")))
        for number in range(NUM_STEPS):
            batches = parts.training.step_batches(number, 1, rank=0, world_size=1)
            step.run(batches, counts_of(batches), number, MetricSums(CPU))
    return torch.tensor([generator.losses, discriminator.losses], dtype=torch.float64)


def implementation(op: str, name: str) -> Callable[..., Any]:
    if op == "residual_norm" and name == "reference":
        name = "torch"
    return functools.partial(OPS[op][1], implementation=name)


@pytest.fixture(scope="module")
def exact(shards: Path) -> Tensor:
    return train(shards, torch.float64)


@pytest.fixture(scope="module")
def allowance(shards: Path, exact: Tensor) -> Tensor:
    rounding = (train(shards) - exact).abs().cummax(dim=1).values
    return 2 * rounding + exact * torch.finfo(torch.float32).eps


def assert_losses_of_the_reference(losses: Tensor, exact: Tensor, allowance: Tensor) -> None:
    assert losses.shape == exact.shape == (2, NUM_STEPS)
    worst = ((losses - exact).abs() / allowance).max(dim=1)
    assert (worst.values <= 1).all(), f"{worst.values.tolist()} times the allowance, in steps {worst.indices.tolist()}"


@pytest.mark.parametrize("op", ["disentangled_attention", "masked_lm_loss"])
def test_fifty_steps_of_torch_have_the_losses_of_the_reference(
    op: str, shards: Path, exact: Tensor, allowance: Tensor
) -> None:
    assert_losses_of_the_reference(train(shards, **{op: implementation(op, "torch")}), exact, allowance)
    assert exact[0, -10:].mean() < exact[0, :10].mean()  # something is learnt


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_fifty_steps_of_triton_have_the_losses_of_the_reference(
    op: str, shards: Path, exact: Tensor, allowance: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not dispatch.IS_INTERPRETED:
        pytest.skip("runs on the CPU, in Triton's interpreter")
    from disentangled.kernels.disentangled_attention import tile_sizes

    choose = tile_sizes.config
    monkeypatch.setattr(tile_sizes, "config", lambda *arguments: replace(choose(*arguments), block=16))
    assert_losses_of_the_reference(train(shards, **{op: implementation(op, "triton")}), exact, allowance)


@pytest.mark.parametrize(("index", "factor"), [(2, 1.001), (3, 0.0), (4, 0.0)], ids=["value", "rel_key", "rel_query"])
def test_a_wrong_gradient_is_seen(index: int, factor: float, shards: Path, exact: Tensor, allowance: Tensor) -> None:
    """The allowance is not so wide that one of the five gradients could be missing, or a thousandth too large."""

    def wrong(*tensors: Tensor, **keywords: object) -> Tensor:
        passed = list(tensors)
        if passed[index].requires_grad:
            passed[index] = passed[index] * 1.0
            passed[index].register_hook(lambda gradient: gradient * factor)
        return disentangled_attention(*passed, implementation="torch", **keywords)

    with pytest.raises(AssertionError, match="times the allowance"):
        assert_losses_of_the_reference(train(shards, disentangled_attention=wrong), exact, allowance)


@pytest.mark.parametrize("index", range(3), ids=["hidden", "table", "bias"])
def test_a_wrong_gradient_of_the_loss_is_seen(index: int, shards: Path, exact: Tensor, allowance: Tensor) -> None:
    def wrong(*tensors: Tensor, **keywords: object) -> object:
        passed = list(tensors)
        if passed[index].requires_grad:
            passed[index] = passed[index] * 1.0
            passed[index].register_hook(lambda gradient: gradient * 1.001)
        return masked_lm_loss(*passed, implementation="torch", **keywords)

    with pytest.raises(AssertionError, match="times the allowance"):
        assert_losses_of_the_reference(train(shards, masked_lm_loss=wrong), exact, allowance)
