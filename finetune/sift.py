"""Scale-invariant fine-tuning (SiFT): the same prediction is asked for where normalized embeddings are perturbed.

    e = layer_norm(embeddings)                         normalized, before the norm's own weight and bias
    delta_0 ~ init * N(0, 1)
    g = gradient by delta of D(f(e + delta_0), f(e)), f(e) held fixed
    delta = delta_0 + step * g / |g|                   token by token
    loss = task's + weight * D(f(e + delta), f(e))
D is the symmetric Kullback-Leibler divergence of the predicted distributions, of regression the squared difference. As
the norm multiplies by its weight after normalizing, `weight * delta` is added to its output. A step takes three
forward passes.
Source: arXiv 2006.03654, section 5; the perturbation by one ascent follows virtual adversarial training, arXiv
1704.03976. The sizes of init and step are not in the paper: 1e-2 and 1e-4 are the defaults here.
Used by: task_trainer.py. Tested by tests/finetune/test_sift.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

# the name of the embeddings' norm: DebertaV2, BERT and their like; ModernBERT
NORMS = ("LayerNorm", "norm")
# logits of padding: their share of a distribution is 0 in fp32, and no infinity meets a zero
NEVER = -1e4
TINY = 1e-12


@dataclass
class Perturbation:
    """What is added to the normalized embeddings while `delta` [B, T, H] is there."""

    delta: Tensor | None = None

    def attach(self, model: PreTrainedModel) -> "Perturbation":
        """Add it to the model's embeddings from now on.

        Raises:
            ValueError: the architecture has no norm on its embeddings.
        """
        embeddings = getattr(model.base_model, "embeddings", None)
        norm = next((getattr(embeddings, name) for name in NORMS if hasattr(embeddings, name)), None)
        if not isinstance(norm, nn.LayerNorm):
            raise ValueError(f"sift_weight is above 0: {type(model).__name__} has no norm on its embeddings to perturb")
        norm.register_forward_hook(self._add)
        return self

    def _add(self, norm: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if self.delta is None:
            return output
        assert isinstance(norm.weight, Tensor)
        return output + (norm.weight * self.delta).to(output.dtype)


def adversarial_divergence(
    model: nn.Module, inputs: Mapping[str, Tensor], clean: Any, perturbation: Perturbation, *, step: float, init: float
) -> Tensor:
    """D between the clean outputs' predictions and those under the found perturbation, a mean over examples.

    Args:
        clean: the outputs of `model(**inputs)`; gradients flow into them too.
        perturbation: attached to the model; it is off again afterwards.
    """
    width = next(module.weight.shape[1] for module in model.modules() if isinstance(module, nn.Embedding))
    ids = inputs["input_ids"]
    rows = ids.view(-1, ids.shape[-1])
    start = init * torch.randn(*rows.shape, width, device=ids.device)
    start = start.requires_grad_()
    try:
        perturbation.delta = start
        first = divergence(model(**inputs), clean, inputs, clean_is_fixed=True)
        (gradient,) = torch.autograd.grad(first, start)
        direction = gradient / (gradient.norm(dim=-1, keepdim=True) + TINY)
        perturbation.delta = (start + step * direction).detach()
        return divergence(model(**inputs), clean, inputs)
    finally:
        perturbation.delta = None


def divergence(found: Any, clean: Any, inputs: Mapping[str, Tensor], clean_is_fixed: bool = False) -> Tensor:
    """The symmetric divergence of two outputs of a head, or the squared difference of two numbers."""
    pairs = [_distributions(outputs, inputs) for outputs in (found, clean)]
    total = torch.zeros((), device=inputs["input_ids"].device)
    for ours, theirs in zip(*pairs, strict=True):
        theirs = theirs.detach() if clean_is_fixed else theirs
        if ours.shape[-1] == 1:
            total = total + F.mse_loss(ours, theirs)
        else:
            total = total + _kl(ours, theirs.detach()) + _kl(theirs, ours if clean_is_fixed else ours.detach())
    return total


def _kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits), a mean over rows."""
    return F.kl_div(logits.log_softmax(-1), target.log_softmax(-1), reduction="batchmean", log_target=True)


def _distributions(outputs: Any, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The logits of each distribution [rows, outcomes] that a head gives, in fp32."""
    if "start_logits" in outputs:
        padding = inputs["attention_mask"] == 0
        return [outputs[name].float().masked_fill(padding, NEVER) for name in ("start_logits", "end_logits")]
    logits = outputs["logits"].float()
    if logits.dim() == 3:
        return [logits[inputs["labels"] >= 0]]
    return [logits]
