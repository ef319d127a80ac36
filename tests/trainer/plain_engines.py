"""One model in plain torch behind the interface of trainer/engine.ModelEngine: what DeepSpeed must amount to."""

from typing import Any

import torch
from torch import Tensor, nn

from disentangled.trainer.optim import build_optimizer
from disentangled.trainer.sections import OptimizerSection


class PlainEngine:
    """Adds gradients up, clips them after the last micro-batch and steps.

    Attributes:
        learning_rates: the rate of each update so far.
    """

    def __init__(
        self, model: nn.Module, section: OptimizerSection, moves: bool = True, table_apart: bool = False
    ) -> None:
        self.module = model
        self.learning_rates: list[float] = []
        self._optimizer = build_optimizer(model, section, section.learning_rate, table_apart=table_apart)
        self._clipping = section.gradient_clipping
        self._moves = moves
        self._norm = 0.0

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        return self.module(*arguments, **keywords)

    def update(self, loss: Tensor, is_last: bool) -> None:
        loss.backward()
        if is_last and self._moves:
            limit = self._clipping or float("inf")
            self._norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), limit))
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.learning_rates.append(self._optimizer.param_groups[-1]["lr"])

    def set_learning_rate(self, learning_rate: float, resting_group: str | None = None) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0 if group["name"] == resting_group else learning_rate

    def gradient_norm(self) -> float:
        return self._norm

    def state(self) -> dict[str, Tensor]:
        """A copy of the model's weights."""
        return {name: weight.detach().clone() for name, weight in self.module.named_parameters()}


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two models have equal weights, bit for bit."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
