"""Refuses updates that would harm: gradients that are not finite, and spikes.

What: a guard stands in front of one optimizer's `step`. At each update it looks at the gradient's norm before clipping,
which is summed over all ranks, so every rank decides alike. A refused update leaves weights, moments and what the
optimizer counts as they were. A spike is a norm above spike_factor times its running mean; what enters the mean is cut
at that limit, so a lasting change of scale is let through after some ten refusals.
The norm, its mean and the decision stay on the device: torch's fused optimizers take a flag that stops them and a
divisor of the gradients, so clipping costs no pass either. The host is told by a copy, and need not wait for it before
the device has more to do (docs/decisions/0013-updates-decided-on-the-device.md). Other optimizers wait.
Used by: trainer/engine.py. Tested by tests/trainer/test_update_guard.py and tests/integration/test_faults.py.
Not here: what follows from refusals in a row (trainer/faults.py).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_

MEAN_DECAY = 0.99
FIRST_UPDATES = 100  # the mean of fewer is no measure of a spike
CLIPPING_EPSILON = 1e-6  # torch's and DeepSpeed's
NOT_FINITE = "its gradient is not finite"


@dataclass(frozen=True)
class NormMean:
    """The running mean of a model's gradient norms, and how many entered it; part of a checkpoint."""

    mean: float = 0.0
    num_updates: int = 0


class Decision:
    """What was decided about an update; on its way to the host.

    Args:
        values: fp64 [3], on any device: whether it was refused, the gradient's norm, the mean of norms before it.
            None: DeepSpeed gave the update up itself.
    """

    def __init__(self, values: Tensor | None) -> None:
        self._values, self._is_copied = values, None
        if values is not None and values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            self._is_copied = torch.cuda.Event()
            self._is_copied.record()

    @property
    def is_deepspeeds(self) -> bool:
        """Whether DeepSpeed gave the update up before the guard was asked."""
        return self._values is None

    def refusal(self) -> str:
        """Why the update was not made, in words; empty where it was. Waits until the device has got that far."""
        if self._values is None:
            return NOT_FINITE
        if self._is_copied is not None:
            self._is_copied.synchronize()
        is_refused, norm, mean = self._values.tolist()
        if not is_refused:
            return ""
        return f"its gradient's norm is {norm:.3g}, the mean {mean:.3g}" if math.isfinite(norm) else NOT_FINITE


class UpdateGuard:
    """Decides about each update of one optimizer, and clips its gradients.

    Args:
        read_norm: the gradient's norm before clipping, once all gradients are there; DeepSpeed's is negative where a
            gradient is not finite.
        spike_factor: see the module; 0 lets every finite norm pass.
        clipping: the longest gradient of an update; 0: any.

    Attributes:
        norm: the last update's, fp64 on its device; infinite where a gradient was not finite.
        decision: about the last update.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        read_norm: Callable[[], Tensor | float],
        spike_factor: float,
        clipping: float = 0.0,
    ) -> None:
        self._optimizer: Any = optimizer
        self._step = optimizer.step
        optimizer.step = self._step_if_sound  # type: ignore[method-assign]
        self._read_norm = read_norm
        self._spike_factor = spike_factor
        self._clipping = clipping
        self._norms = torch.zeros(2, dtype=torch.float64)  # their mean, and how many entered it
        self._is_refused = torch.tensor(False)
        self.norm = torch.zeros((), dtype=torch.float64)
        self.decision: Decision | None = None

    @property
    def decides_on_device(self) -> bool:
        """Whether the optimizer can be stopped by a flag on the device."""
        return getattr(self._optimizer, "_step_supports_amp_scaling", False)

    @property
    def norms(self) -> NormMean:
        """The running mean; waits for the device."""
        mean, num_updates = self._norms.tolist()
        return NormMean(mean, int(num_updates))

    @norms.setter
    def norms(self, norms: NormMean) -> None:
        self._norms = torch.tensor([norms.mean, norms.num_updates], dtype=torch.float64)

    def watch(self, update: Callable[[], Any]) -> Decision:
        """Run one update of the engine, in which it calls the optimizer once or more, or finds a reason not to."""
        self.decision = None
        update()
        if self.decision is None:
            self.norm = torch.full_like(self.norm, math.inf)
            self.decision = Decision(None)
        return self.decision

    def _step_if_sound(self, *arguments: Any, **keywords: Any) -> Any:
        if self.decision is None:
            self._decide()
        moved = [p for group in self._optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not self.decides_on_device:
            if self._is_refused:
                return None
            if self._clipping:
                clip_grads_with_norm_(moved, self._clipping, self.norm.float())
        elif moved:
            device = moved[0].device  # where the optimizer is offloaded, not the norm's
            self._optimizer.found_inf = self._is_refused.to(device, torch.float32)
            if self._clipping:
                divisor = ((self.norm + CLIPPING_EPSILON) / self._clipping).clamp(min=1.0)
                self._optimizer.grad_scale = divisor.to(device, torch.float32)
        return self._step(*arguments, **keywords)

    @torch.no_grad()
    def _decide(self) -> None:
        norm = torch.as_tensor(self._read_norm(), dtype=torch.float64)
        norm = self.norm = torch.where(norm >= 0, norm, math.inf)
        mean, num_updates = self._norms = self._norms.to(norm.device, non_blocking=True)
        limit = torch.full_like(norm, math.inf)
        if self._spike_factor:
            limit = torch.where(num_updates >= FIRST_UPDATES, self._spike_factor * mean, limit)
        is_finite = norm < math.inf
        self._is_refused = ~is_finite | (norm > limit)
        self.decision = Decision(torch.stack([self._is_refused.double(), norm, mean]))
        # of all norms while they are few, then an exponential mean
        share = (1.0 / (num_updates + 1.0)).clamp(min=1.0 - MEAN_DECAY)
        moved = torch.stack([mean + share * (torch.minimum(norm, limit) - mean), num_updates + 1.0])
        self._norms = torch.where(is_finite, moved, self._norms)
