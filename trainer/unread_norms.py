"""DeepSpeed's updates without a look at the gradient's norm, for which the host would wait for the device.

What: at stages 1 to 3 DeepSpeed (0.19.8) reads each update's norm, at stage 2 in bf16 all gradients before it, to skip
what is not finite. The guard in front of its optimizer does that on the device (trainer/update_guard.py), so nobody
needs to wait for it. In fp16 it stays: the loss scale follows from it.
Used by: trainer/engine.py. Tested by tests/integration/test_zero_stages.py, which finds any other wait, too.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import stage3, stage_1_and_2

READERS = (bf16_optimizer, stage_1_and_2, stage3)


@contextmanager
def norms_unread(optimizer: Any) -> Iterator[None]:
    """Within it DeepSpeed takes every gradient of its `optimizer` for a sound one."""
    looks = [reader.is_invalid_grad_norm for reader in READERS]
    if hasattr(optimizer, "check_grad_overflow"):
        optimizer.check_grad_overflow = False
    try:
        for reader in READERS:
            reader.is_invalid_grad_norm = lambda norm: False
        yield
    finally:
        for reader, look in zip(READERS, looks, strict=True):
            reader.is_invalid_grad_norm = look
