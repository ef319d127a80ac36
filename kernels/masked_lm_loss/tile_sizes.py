"""Tile sizes and compiler options of each kernel: the largest that spill no register, by benchmarks/loss_resources.py.

Used by: launch.py. Tested by: tests/benchmarks/test_loss_resources.py.
"""

from dataclasses import dataclass

import torch

from disentangled.kernels.masked_lm_loss.draw import SAMPLE_BLOCK


@dataclass(frozen=True)
class Tiles:
    """Rows, ids (whole sampling blocks) and width of a tile of a product, and the compiler's options.

    finished_rows: of one program of finish_kernel, which reads 128 table rows for each.
    """

    rows: int
    ids: int = SAMPLE_BLOCK
    width: int = 64
    num_warps: int = 8
    num_stages: int = 3
    finished_rows: int = 1

    @property
    def constants(self) -> dict[str, int]:
        """What a launch is given besides the kernel's arguments."""
        return {
            "BLOCK_M": self.rows, "BLOCK_V": self.ids, "BLOCK_D": self.width,
            "num_warps": self.num_warps, "num_stages": self.num_stages,
        }  # fmt: skip


def tiles_of(dtype: torch.dtype, table_dtype: torch.dtype, capability: int) -> Tiles:
    """Those of a call whose hidden rows and table have these dtypes, on a GPU of 10 x compute capability."""
    if dtype == torch.float32:
        return Tiles(rows=64, width=16, num_stages=2)
    # From sm_100 on a thread reads a whole row of the product, and holds what belongs to its ids for each of them.
    rows = 64 if capability >= 100 else 128
    return Tiles(rows, width=32 if table_dtype == torch.float32 else 64)  # float32 tiles take twice the room
