"""One call of masked_lm_loss, made to be asked again: other implementation, other dtype, with gradients."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, MaskedLmLoss, masked_lm_loss
from tests.numerics import assert_no_worse_than_eager

NAMES = ("hidden", "table", "bias")
UPSTREAM = 0.375  # of the sum of the losses: not 1, so that a forgotten factor shows


@dataclass(frozen=True, eq=False)
class MaskedLmCase:
    """The three differentiable tensors (hidden, table, bias), the labels and the draw."""

    tensors: tuple[Tensor, ...]
    labels: Tensor
    draw: Draw

    def with_tensors(self, **tensors: Tensor) -> "MaskedLmCase":
        return replace(self, tensors=tuple((dict(zip(NAMES, self.tensors, strict=True)) | tensors).values()))

    def with_draw(self, **changes: Any) -> "MaskedLmCase":
        return replace(self, draw=replace(self.draw, **changes))

    def rows(self, rows: slice) -> "MaskedLmCase":
        """The same call for some of the rows."""
        hidden, table, bias = self.tensors
        draw = replace(self.draw, sample=self.draw.sample[rows], token=self.draw.token[rows])
        return MaskedLmCase((hidden[rows], table, bias), self.labels[rows], draw)

    def on(self, device: torch.device | str) -> "MaskedLmCase":
        """The same case with everything on a device."""
        moved = {name: getattr(self.draw, name).to(device) for name in ("sample", "token", "banned")}
        return MaskedLmCase(
            tuple(x.to(device) for x in self.tensors), self.labels.to(device), replace(self.draw, **moved)
        )

    def call(self, implementation: str | None) -> MaskedLmLoss:
        return masked_lm_loss(*self.tensors, self.labels, self.draw, implementation=implementation)

    def run(self, implementation: str | None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Results and the gradients of the three tensors, computed in `dtype` (None: as the tensors are)."""
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in self.tensors]
        result = masked_lm_loss(*leaves, self.labels, self.draw, implementation=implementation)
        grads = torch.autograd.grad(result.loss_sum, leaves, torch.tensor(UPSTREAM).to(result.loss_sum))
        values = {name: x.detach() for name, x in result._asdict().items()}
        return values | {f"grad_{name}": x for name, x in zip(NAMES, grads, strict=True)}

    def assert_no_worse_than_eager(self, implementation: str) -> None:
        """The error rule for losses, logsumexp and every gradient; top-1 and draws as the exact answer has them."""
        assert_all_no_worse_than_eager([self], implementation)

    def assert_results_no_worse_than_eager(self, candidate: dict[str, Tensor]) -> None:
        """The same for what `run` gave."""
        assert_results_no_worse_than_eager([self], [candidate])


def assert_all_no_worse_than_eager(cases: Sequence[MaskedLmCase], implementation: str) -> None:
    """The same for the results of several cases taken as one tensor: the error of a single row is luck."""
    assert_results_no_worse_than_eager(cases, [case.run(implementation) for case in cases])


def assert_results_no_worse_than_eager(cases: Sequence[MaskedLmCase], candidates: Sequence[dict[str, Tensor]]) -> None:
    """What `run` gave for each case, taken as one tensor.

    Top-1 and draws are of logits rounded otherwise, so they may part where the exact answer is a near tie: one row of a
    thousand, and one more, in float32, and in half precision a fiftieth.
    """

    def joined(results: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.cat([x[name] for x in results]) for name in results[0] if name != "loss_sum"}

    eager = joined([case.run("reference") for case in cases])
    candidate, exact = joined(candidates), joined([case.run("reference", torch.float64) for case in cases])
    for name in ("losses", "lse", "grad_hidden", "grad_table", "grad_bias"):
        assert_no_worse_than_eager(candidate[name], eager[name], exact[name], name)
    share = 1e-3 if cases[0].tensors[0].dtype in (torch.float32, torch.float64) else 0.02
    for name in ("is_correct", "drawn"):
        parted, num_rows = int((candidate[name] != exact[name]).sum()), len(exact[name])
        assert parted <= 1 + share * num_rows, f"{name} parts in {parted} of {num_rows} rows"


def masked_lm_case(
    num_rows: int,
    num_ids: int,
    width: int = 16,
    *,
    dtype: torch.dtype = torch.float32,
    temperature: float = 1.0,
    seed: int = 0,
) -> MaskedLmCase:
    """Normal random tensors whose logits have a spread of about 2; each fifth row, from the fourth, has label -100, and
    each third of the others is labelled with what is likely to be its top-1. Ids 0 to 3 and the last are banned.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden, table, bias = normal(num_rows, width), normal(num_ids, width) * 1.5 / width**0.5, normal(num_ids)
    labels = torch.randint(num_ids, (num_rows,), generator=generator)
    labels[::3] = torch.cat([(x @ table.T + bias).argmax(-1) for x in hidden[::3].split(64)] or [labels[:0]])
    labels[3::5] = -100
    banned = torch.zeros(num_ids, dtype=torch.bool)
    banned[[0, 1, 2, 3, num_ids - 1]] = True
    flat = torch.arange(num_rows)
    draw = Draw(9, Stream.REPLACEMENT, 2**33 + flat // 64, flat % 64, banned, temperature)
    return MaskedLmCase((hidden.to(dtype), table.to(dtype), bias.to(dtype)), labels, draw)
