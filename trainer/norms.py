"""Euclidean norms of gradients and tables, exact to float32 on any device.

Used by: trainer/engine.py. Tested by tests/trainer/test_norms.py.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

NORM_RUN = 1024  # values: so few that their fp32 sum loses less than the values themselves have


def norm_of(values: Tensor) -> Tensor:
    """Norm in fp64: over half a million values torch's fp32 sum on a CPU is off by 4e-4.

    Sums over NORM_RUN values at a time are fp32: a CPU takes twenty times as long in fp64.
    """
    flat = values.detach().reshape(-1)
    if flat.numel() < NORM_RUN:
        return torch.linalg.vector_norm(flat, dtype=torch.float64)
    num_whole = flat.numel() - flat.numel() % NORM_RUN
    runs = torch.linalg.vector_norm(
        flat[:num_whole].view(-1, NORM_RUN), dim=1, dtype=torch.promote_types(flat.dtype, torch.float32)
    ).double()
    if num_whole < flat.numel():
        runs = torch.cat([runs, norm_of(flat[num_whole:]).view(1)])
    return torch.linalg.vector_norm(runs)


def norm_of_all(tensors: Sequence[Tensor]) -> Tensor:
    """Norm of all their values together, 0-dimensional, on their device.

    On a GPU a few launches for all tensors; sums are trees there, which fp32 is enough for.
    """
    if tensors[0].is_cuda:
        return torch.nn.utils.get_total_norm(tensors)
    return norm_of(torch.stack([norm_of(x) for x in tensors]))
