"""LayerNorm of a residual and a dropped-out branch, in one pass: the op. See README.md."""

from disentangled.kernels.residual_norm.op import residual_norm

__all__ = ["residual_norm"]
