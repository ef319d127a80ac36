"""AdamW as DeBERTa's code has it, and StableAdamW: what torch's AdamW leaves out.

What: decoupled weight decay with two switches.
- bias_correction: off in the original code, whose first updates are smaller for it (0.1 / sqrt(0.02) of the gradient's
  sign at beta1 0.9, beta2 0.98).
- clip_updates: StableAdamW (arXiv 2304.13013, algorithm 2): a tensor's rate is divided by max(1, RMS_t), where
  RMS_t^2 = mean(g^2 / max(u, eps^2)) and u is the second moment: an update that u did not foresee is made smaller.
RMS_t is a mean over a whole parameter. ZeRO gives an optimizer flat tensors with cut pieces of many parameters:
`know_pieces` tells which, and each step then sums squares over the ranks, so every stage clips as plain torch does.
Used by: trainer/optim.py, trainer/engine.py. Tested by tests/trainer/test_adamw.py and tests/integration/.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """Elements start .. start + length - 1 of a flat tensor belong to the model's parameter of this number."""

    parameter: int
    start: int
    length: int


class AdamW(torch.optim.Optimizer):
    """AdamW with bias correction or without, with clipped updates or without."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        clip_updates: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._bias_correction = bias_correction
        self._clip_updates = clip_updates
        self._pieces: Mapping[Tensor, Sequence[Piece]] | None = None
        self._sizes: Sequence[int] = ()
        self._add_up: Callable[[Tensor], Tensor] = lambda totals: totals

    def know_pieces(
        self, pieces: Mapping[Tensor, Sequence[Piece]], sizes: Sequence[int], add_up: Callable[[Tensor], Tensor]
    ) -> None:
        """Say what the flat tensors hold.

        Args:
            pieces: by flat tensor.
            sizes: elements of each of the model's parameters.
            add_up: [parameters] -> the same, summed over the ranks that hold the other pieces. Called once a step.
        """
        self._pieces, self._sizes, self._add_up = pieces, sizes, add_up

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; `closure` is not supported."""
        assert closure is None
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, group in moved:
            self._update_moments(parameter, group)
        if not self._clip_updates:
            for parameter, group in moved:
                self._move(parameter.view(-1), self._direction(parameter, group), group, 1.0)
            return
        pieces, sizes = self._pieces, self._sizes
        if pieces is None:
            pieces = {parameter: (Piece(number, 0, parameter.numel()),) for number, (parameter, _) in enumerate(moved)}
            sizes = [parameter.numel() for parameter, _ in moved]
        shares = self._clipping(moved, pieces, sizes)
        for parameter, group in moved:
            direction = self._direction(parameter, group)
            for piece in pieces.get(parameter, ()):
                own = slice(piece.start, piece.start + piece.length)
                share = shares[piece.parameter].to(parameter)
                self._move(parameter.view(-1)[own], direction[own], group, share)

    def _update_moments(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)

    def _corrections(self, parameter: Tensor, group: dict[str, Any]) -> tuple[float, float]:
        """What the moments are divided by."""
        if not self._bias_correction:
            return 1.0, 1.0
        step = int(self.state[parameter]["step"])
        first, second = (1 - beta**step for beta in group["betas"])
        return first, second

    def _direction(self, parameter: Tensor, group: dict[str, Any]) -> Tensor:
        """[elements], first moment over the root of the second."""
        state, (first, second) = self.state[parameter], self._corrections(parameter, group)
        root = (state["exp_avg_sq"].view(-1) / second).sqrt_().add_(group["eps"])
        return (state["exp_avg"].view(-1) / first).div_(root)

    def _move(self, weights: Tensor, direction: Tensor, group: dict[str, Any], share: Tensor | float) -> None:
        rate = group["lr"] * share
        weights.mul_(1 - rate * group["weight_decay"]).sub_(rate * direction)

    def _clipping(
        self,
        moved: Sequence[tuple[Tensor, dict[str, Any]]],
        pieces: Mapping[Tensor, Sequence[Piece]],
        sizes: Sequence[int],
    ) -> Tensor:
        """[parameters] fp64, the share of the rate that each parameter moves by."""
        device = moved[0][0].device if moved else torch.device("cpu")
        totals = torch.zeros(len(sizes), dtype=torch.float64, device=device)
        for parameter, group in moved:
            second = self.state[parameter]["exp_avg_sq"] / self._corrections(parameter, group)[1]
            assert parameter.grad is not None
            surprise = (parameter.grad.square() / second.clamp_(min=group["eps"] ** 2)).view(-1)
            for piece in pieces.get(parameter, ()):
                totals[piece.parameter] += surprise[piece.start : piece.start + piece.length].sum(dtype=torch.float64)
        mean = self._add_up(totals) / torch.tensor(sizes, dtype=torch.float64, device=device)
        return 1 / mean.sqrt().clamp(min=1.0)
