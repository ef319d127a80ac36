"""Disentangled attention (DeBERTa, arXiv:2006.03654): the op, and what identifies its dropout. See README.md."""

from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from disentangled.kernels.disentangled_attention.op import disentangled_attention

__all__ = ["AttentionDropout", "disentangled_attention"]
