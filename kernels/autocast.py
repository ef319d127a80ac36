"""What an op does under torch.autocast: as scaled_dot_product_attention, it takes its inputs in autocast's dtype.

Used by: the ops of disentangled_attention/, masked_lm_loss/ and residual_norm/; model/layer.py. Tested with them, by
tests/kernels/test_registered.py, test_masked_lm_loss.py and test_residual_norm.py.
"""

import torch
from torch import Tensor


def cast_input(x: Tensor) -> Tensor:
    """x in the dtype that a product takes it in; itself where it has that."""
    return x.to(product_dtype(x.dtype, x.device))


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """That of the autocast around the call; the tensor's own where there is none, and float64."""
    # meta first, as torch.amp.is_autocast_available, which would know, breaks graphs before torch 2.12
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return dtype
    is_cast = dtype.is_floating_point and dtype != torch.float64
    return torch.get_autocast_dtype(device.type) if is_cast else dtype
