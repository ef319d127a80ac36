"""Public losses over a vocabulary, none of which draws: what `benchmarks.masked_lm` times ours beside.

What: each takes hidden rows [M, D], a table [V, D], a bias [V] and labels [M], and gives the summed loss. They are
called as their authors say, with what they choose themselves; torch's own is there from torch 2.12 on, and Liger's and
Apple's run on GPUs only and are looked for when called. Apple's has no bias, and leaves gradients out that it takes to
be too small to matter.
Used by: benchmarks/masked_lm.py. Tested by: tests/benchmarks/test_masked_lm.py.
"""

# M masked tokens  V ids  D width

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Rival:
    """A loss alone. package: what has to be installed for it."""

    label: str
    loss: Loss
    package: str = "torch"
    needs_gpu: bool = False

    def version(self) -> str | None:
        """Of its package; None where that is missing."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None


def eager_loss(hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Logits whole, in float32 for the softmax."""
    return F.cross_entropy(F.linear(hidden, table, bias).float(), labels, reduction="sum")


def torch_loss(hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """torch's own, in chunks of its choice."""
    loss: Tensor = F.linear_cross_entropy(  # type: ignore[attr-defined, unused-ignore]
        hidden, table, labels, linear_bias=bias, reduction="sum", options=torch.nn.LinearCrossEntropyOptions()
    )
    return loss


def liger_loss(hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Liger's: gradients in forward, in the inputs' dtype."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    loss: Tensor = liger_fused_linear_cross_entropy(hidden, table, labels, bias=bias, reduction="sum")
    return loss


def cut_loss(hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Apple's cut cross-entropy (arXiv 2411.09009)."""
    from cut_cross_entropy import linear_cross_entropy

    loss: Tensor = linear_cross_entropy(hidden, table, labels, reduction="sum")
    return loss


RIVALS = {
    "eager": Rival("eager", eager_loss),
    "compiled": Rival("torch.compile", torch.compile(eager_loss)),
    "torch": Rival("torch's linear_cross_entropy", torch_loss),
    "liger": Rival("Liger", liger_loss, "liger-kernel", needs_gpu=True),
    "cut": Rival("cut cross-entropy", cut_loss, "cut-cross-entropy", needs_gpu=True),
}
