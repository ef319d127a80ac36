"""A kernel that Triton gets wrong: its loop writes a tile, waits for all threads, and reads it back.

`python -m tests.benchmarks.reads_ahead` compiles it for sm_90 as benchmarks/resources.py compiles ours; that must fail.
Used by: tests/benchmarks/test_read_ahead.py.
"""

import torch
import triton
import triton.language as tl

from benchmarks.launches import Launch, compile_launch
from disentangled.kernels.disentangled_attention.tiles import program_barrier


@triton.jit
def through_scratch_kernel(x_ptr, scratch_ptr, out_ptr, num_tiles, BLOCK: tl.constexpr):
    """out = sum over tiles of x times 2 x, the second by way of scratch."""
    tile = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for number in tl.range(num_tiles):
        x = tl.load(x_ptr + number * BLOCK * BLOCK + tile)
        tl.store(scratch_ptr + tile, 2 * x)
        program_barrier(num_tiles)
        total = tl.dot(x, tl.load(scratch_ptr + tile), total)
    tl.store(out_ptr + tile, total)


if __name__ == "__main__":
    half, single = torch.empty(0, dtype=torch.bfloat16), torch.empty(0)
    arguments = {"x_ptr": half, "scratch_ptr": half, "out_ptr": single, "num_tiles": 7, "BLOCK": 64, "num_stages": 3}
    compile_launch(Launch(through_scratch_kernel, arguments), 90)
