"""Initial weights: N(0, initializer_range) for matrices and tables, zero biases, unit LayerNorms.

What: arXiv 2006.03654 follows BERT here; E_Delta starts at zero (arXiv 2111.09543 section 3.3). Values come from the
counter RNG, keyed by seed, parameter name and place, so they depend neither on the order of construction nor on which
other parameters exist: ES, NES and GDES runs start from the same trunk.
Used by: model/generator.py, model/discriminator.py. Tested by tests/model/test_initialize.py.
"""

import math
import zlib

import torch
from torch import Tensor, nn

from disentangled.kernels.counter_rng import Stream, random_words

CALLS_AT_ONCE = 1 << 20  # bounds the int64 words of one draw at 32 MB


@torch.no_grad()
def initialize_weights(model: nn.Module, standard_deviation: float, seed: int) -> None:
    """Fill every parameter of `model` in place; one on the meta device has no values to fill."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            continue
        if name.endswith("LayerNorm.weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias") or "word_embeddings_delta" in name:
            parameter.zero_()
        else:
            values = draw_normals(parameter.numel(), seed, zlib.crc32(name.encode()))
            parameter.copy_(values.view(parameter.shape) * standard_deviation)


def draw_normals(num_values: int, seed: int, key: int) -> Tensor:
    """[num_values] float32 standard normals by the Box-Muller transform, two from each pair of 32-bit words."""
    num_calls = -(-num_values // 4)
    normals = torch.empty(num_calls, 4)
    for start in range(0, num_calls, CALLS_AT_ONCE):
        element = torch.arange(start, min(start + CALLS_AT_ONCE, num_calls))
        words = random_words(seed, Stream.INITIALIZE, sample=key, token=0, element=element)
        uniforms = (words.double() + 0.5) * 2.0**-32
        radius = (-2.0 * uniforms[:, :2].log()).sqrt()
        angle = 2.0 * math.pi * uniforms[:, 2:]
        normals[element[0] : element[-1] + 1] = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1).float()
    return normals.view(-1)[:num_values]
