"""Dropout of hidden activations, keyed by sample and token: the op. See README.md."""

from disentangled.kernels.hidden_dropout.op import dropout

__all__ = ["dropout"]
