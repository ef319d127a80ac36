"""Dropout's decisions as a torch operator, disentangled::keep_mask: torch.compile takes it whole.

Traced, Philox would be unrolled into a hundred integer operations for each dropout, and compiled again for each seed.
Used by: counter_rng.py, under torch.compile alone. Tested by: tests/model/test_compile.py.
"""

import torch
from torch import Tensor

torch.library.define(
    "disentangled::keep_mask",
    "(float probability, int num_elements, int seed, int stream, SymInt layer, Tensor sample, Tensor token, "
    "int first_block) -> Tensor",
)


@torch.library.impl("disentangled::keep_mask", ("cpu", "cuda"))
def _(
    probability: float,
    num_elements: int,
    seed: int,
    stream: int,
    layer: int,
    sample: Tensor,
    token: Tensor,
    first_block: int,
) -> Tensor:
    from disentangled.kernels.counter_rng import keep_mask

    return keep_mask(
        probability,
        num_elements,
        seed=seed % (1 << 64),
        stream=stream,
        layer=layer,
        sample=sample,
        token=token,
        first_block=first_block,
    )


@torch.library.register_fake("disentangled::keep_mask")
def _(
    probability: float, num_elements: int, seed: int, stream: int, layer: int, sample: Tensor, *rest: object
) -> Tensor:
    return torch.empty((*sample.shape, num_elements), dtype=torch.bool, device=sample.device)
