"""Tile sizes and compiler options of each kernel: the largest that spill no register, by benchmarks/resources.py.

Used by: attention_call.py. Tested by: tests/benchmarks/test_resources.py.
"""

import functools
from dataclasses import dataclass

import torch

# Hopper's and Blackwell's for data centres: products read their operands from shared memory.
LARGE_TILE_CAPABILITIES = (90, 100, 103)


@dataclass(frozen=True)
class Config:
    """Tile size and compiler options of one kernel."""

    block: int
    num_warps: int = 4
    num_stages: int = 2
    maxnreg: int | None = None  # 255: the assembler must not spill registers for one more program at a time

    @property
    def options(self) -> dict[str, int | None]:
        """What a launch is given besides the kernel's arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages, "maxnreg": self.maxnreg}


def config(kernel: str, head_width: int, dtype: torch.dtype, has_dropout: bool, capability: int = 90) -> Config:
    """What a kernel is launched with: the largest tiles that spill no register, by benchmarks/resources.py.

    All kernels of the backward pass have one tile size, as they share what is stored by tiles. Before Hopper, and on
    GPUs for graphics, operands of products are held in registers and 64 x 64 tiles do not fit.
    """
    if dtype == torch.float32:
        return Config(block=16, num_warps=8, num_stages=1)
    has_room = capability in LARGE_TILE_CAPABILITIES
    if head_width > 64:
        if has_dropout and not has_room:
            return Config(block=16, num_stages=1)
        return Config(block=32, num_warps=4 if kernel == "table_gradient" else 8, num_stages=1)
    if not has_room:
        return Config(block=32, num_stages=1, maxnreg=255 if kernel == "forward" else None)
    if dtype == torch.float16 and has_dropout and kernel != "forward":
        return Config(block=32)  # its scaled keys or queries are one tile more
    if capability >= 100 and (kernel == "key_value" or (kernel == "forward" and has_dropout)):
        return Config(block=64, num_stages=1, maxnreg=255)
    is_full = has_dropout and (capability >= 100 or (dtype == torch.float16 and kernel == "forward"))
    if kernel == "far_key_value" or is_full:
        return Config(block=64, num_stages=1)
    return Config(block=64, num_stages=4 if kernel == "query" else 2)  # dQ does little but load


@functools.cache
def capability_of(device: torch.device) -> int:
    """10 x compute capability; that of an H100 where there is none, as in the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
