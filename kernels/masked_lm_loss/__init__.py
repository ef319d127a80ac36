"""Masked language modelling over a large vocabulary: loss and replacements from one set of logits. See README.md."""

from disentangled.kernels.masked_lm_loss.draw import Draw
from disentangled.kernels.masked_lm_loss.op import MaskedLmLoss, masked_lm_loss

__all__ = ["Draw", "MaskedLmLoss", "masked_lm_loss"]
