"""What an op does under torch.autocast: as scaled_dot_product_attention, it takes its inputs in autocast's dtype.

Used by: the ops of disentangled_attention/ and masked_lm_loss/. Tested with them, by tests/kernels/test_registered.py
and test_masked_lm_loss.py.
"""

import torch
from torch import Tensor


def cast_input(x: Tensor) -> Tensor:
    """x in the dtype of the autocast it stands in; itself where there is none, and in float64."""
    # asked of the tensor, as torch.amp.is_autocast_available breaks graphs before torch 2.12
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type)) if x.is_floating_point() and x.dtype != torch.float64 else x
