"""What the machine says of programs that are known to be wrong: `python -m tests.ptx.faulty_kernels`.

What: programs that take a tile through global memory, as our attention does with its bands: it is written, all threads
wait, and it is read back. One is sound unless Triton copies ahead (benchmarks/read_ahead.py), one unless nobody waits.
Prints how many different results each has in eight runs, and whether all are right.
Used by: test_compiled_kernels.py, in a process of its own, because tests run with Triton's interpreter.
"""

from random import Random
from unittest.mock import patch

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks import launches
from benchmarks.launches import Launch
from disentangled.kernels.disentangled_attention.tiles import program_barrier
from tests.benchmarks.reads_ahead import through_scratch_kernel
from tests.ptx.launch import run

BLOCK, TILES = 64, 5


@triton.jit
def exchanging_kernel(x_ptr, scratch_ptr, out_ptr, num_tiles, BLOCK: tl.constexpr, WAITS: tl.constexpr):
    """out = the sum of all tiles, places 512 apart exchanged by way of scratch: another warp reads than wrote."""
    place = tl.arange(0, BLOCK * BLOCK)
    total = tl.zeros([BLOCK * BLOCK], tl.float32)
    for number in tl.range(num_tiles):
        tl.store(scratch_ptr + place, tl.load(x_ptr + number * BLOCK * BLOCK + place))
        if WAITS:
            program_barrier(num_tiles)
        total += tl.load(scratch_ptr + (place ^ 512)).to(tl.float32)
        if WAITS:
            program_barrier(num_tiles)
    tl.store(out_ptr + place, total)


def describe(kernel: object, right: Tensor, x: Tensor, **options: object) -> str:
    """Different results of eight runs, and whether they are right."""
    results = []
    for seed in range(8):
        scratch, out = torch.zeros_like(x[0]), torch.zeros(BLOCK, BLOCK)
        arguments = {"x_ptr": x, "scratch_ptr": scratch, "out_ptr": out, "num_tiles": TILES, "BLOCK": BLOCK}
        with patch.object(launches, "written_and_read_ahead", lambda _ir: set()):
            run(Launch(kernel, arguments | options), 90, Random(seed))
        results.append(out)
    different = len({tuple(result.flatten().tolist()) for result in results})
    is_right = all(torch.allclose(result.double(), right, atol=1e-2) for result in results)
    return f"{different} {'right' if is_right else 'wrong'}"


if __name__ == "__main__":
    x = torch.randn(TILES, BLOCK, BLOCK, generator=torch.Generator().manual_seed(0)).bfloat16()
    squares, exchanged = 2 * (x.double() @ x.double()).sum(0), x.double().sum(0).flatten()
    exchanged = exchanged[torch.arange(BLOCK * BLOCK) ^ 512].view(BLOCK, BLOCK)
    print("one stage:", describe(through_scratch_kernel, squares, x, num_stages=1))
    print("read ahead:", describe(through_scratch_kernel, squares, x, num_stages=3))
    print("with barriers:", describe(exchanging_kernel, exchanged, x, WAITS=True))
    print("without barriers:", describe(exchanging_kernel, exchanged, x, WAITS=False))
