"""Refuses updates that would harm: gradients that are not finite, and spikes.

What: a guard stands in front of one optimizer's `step`. At each update it reads the gradient's norm before clipping,
which DeepSpeed has summed over all ranks, so every rank decides alike. A refused update leaves weights, moments and
what the optimizer counts as they were. A spike is a norm above spike_factor times its running mean; what enters the
mean is cut at that limit, so a lasting change of scale is let through after some ten refusals.
Used by: trainer/engine.py. Tested by tests/trainer/test_update_guard.py and tests/integration/test_faults.py.
Not here: what follows from refusals in a row (trainer/faults.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

MEAN_DECAY = 0.99
FIRST_UPDATES = 100  # the mean of fewer is no measure of a spike


@dataclass(frozen=True)
class NormMean:
    """The running mean of a model's gradient norms, and how many entered it; part of a checkpoint."""

    mean: float = 0.0
    num_updates: int = 0

    def add(self, norm: float) -> "NormMean":
        """The mean with one more norm: of all while they are few, then an exponential one."""
        weight = max(1.0 - MEAN_DECAY, 1.0 / (self.num_updates + 1))
        return NormMean(self.mean + weight * (norm - self.mean), self.num_updates + 1)

    def limit(self, spike_factor: float) -> float:
        """Norms above it are spikes."""
        return spike_factor * self.mean if spike_factor and self.num_updates >= FIRST_UPDATES else math.inf


class UpdateGuard:
    """Decides about each update of one optimizer.

    Args:
        read_norm: the gradient's norm before clipping, once all gradients are there.
        spike_factor: see the module; 0 lets every finite norm pass.

    Attributes:
        norms: the running mean.
        refusal: why the last update was not made, in words; empty where it was.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, read_norm: Callable[[], float], spike_factor: float) -> None:
        self._step = optimizer.step
        optimizer.step = self._step_if_sound  # type: ignore[method-assign]
        self._read_norm = read_norm
        self._spike_factor = spike_factor
        self._is_decided = False
        self.norms = NormMean()
        self.refusal = ""

    @property
    def is_unseen(self) -> bool:
        """Whether DeepSpeed gave the last update up before the guard was asked."""
        return not self._is_decided

    def watch(self, update: Callable[[], Any]) -> None:
        """Run one update of the engine, in which it calls the optimizer once or more, or finds a reason not to."""
        self._is_decided = False
        update()
        if not self._is_decided:
            self.refusal = "its gradient is not finite"  # DeepSpeed saw it first

    def _step_if_sound(self, *arguments: Any, **keywords: Any) -> Any:
        if not self._is_decided:
            self._decide(self._read_norm())
        return None if self.refusal else self._step(*arguments, **keywords)

    def _decide(self, norm: float) -> None:
        self._is_decided = True
        limit = self.norms.limit(self._spike_factor)
        if not math.isfinite(norm):
            self.refusal = "its gradient is not finite"
            return
        self.refusal = f"its gradient's norm is {norm:.3g}, the mean {self.norms.mean:.3g}" if norm > limit else ""
        self.norms = self.norms.add(min(norm, limit))
