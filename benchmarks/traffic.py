"""Bytes and floating-point operations of the fused attention, counted from its loops: `python -m benchmarks.traffic`.

What: for each kernel of a step the tiles that it visits, the products that it does on them, and what it moves between
memory and its program at least once (inputs, outputs, stored dS and the same sheared); then the time that the slower of
tensor cores and device memory needs, and the same for plain flash attention.
Used for: the table in kernels/disentangled_attention/README.md. Tested by: tests/benchmarks/test_traffic.py.
Not counted: re-reads of keys and values by other programs, which the L2 cache serves; exponentials; launches.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# H200: a bf16 product of 8192 x 8192 x 8192 and a device-to-device copy, as measured on one
TENSOR_FLOPS, MEMORY_BYTES_PER_SECOND = 790e12, 4.3e12
# k = 256, longest distance 512, Hugging Face's rule: log_bucket.py
LAST_LEFT, LAST_RIGHT = 506, -512


@dataclass(frozen=True)
class Shape:
    """Documents of one length, without padding."""

    num_tokens: int  # of a document
    total_tokens: int = 16384
    heads: int = 12
    head_width: int = 64
    block: int = 64
    item_bytes: int = 2

    @property
    def documents(self) -> int:
        return self.total_tokens // self.num_tokens


@dataclass(frozen=True)
class Work:
    """What one kernel does in all."""

    name: str
    flops: float
    memory_bytes: float

    @property
    def microseconds(self) -> float:
        """The slower of tensor cores and device memory, at full speed."""
        return 1e6 * max(self.flops / TENSOR_FLOPS, self.memory_bytes / MEMORY_BYTES_PER_SECOND)


def count_tiles(shape: Shape) -> tuple[int, int]:
    """Tiles near the diagonal and far ones, over all documents and heads; tiles.window_of decides which is which."""
    block, tiles = shape.block, -(-shape.num_tokens // shape.block)
    near = 0
    for row0 in range(0, tiles * block, block):
        first = min(max(row0 - LAST_LEFT + 1, 0) // block, tiles)
        stop = min(max(-(-max(row0 + block - 1 - LAST_RIGHT, 0) // block), first), tiles)
        near += stop - first
    copies = shape.documents * shape.heads
    return near * copies, (tiles**2 - near) * copies


def count(shape: Shape) -> Iterator[Work]:
    """Every kernel of forward and backward that walks tiles; those that only copy tables are not worth a line."""
    near, far = count_tiles(shape)
    product = 2.0 * shape.block**2 * shape.head_width  # one tile times one operand
    tile_bytes = shape.block**2 * shape.item_bytes
    tensor = float(shape.total_tokens * shape.heads * shape.head_width * shape.item_bytes)  # query and its like
    row_tiles = shape.total_tokens // shape.block * shape.heads
    # A sheared walk covers the window and one tile more for every tile of rows.
    sheared = near + row_tiles
    # Rows' own band: a product for each tile and one to begin with; the columns' two for each tile.
    bands = 3 * near + row_tiles
    yield Work("forward", (2 * near + bands + 2 * far) * product, 4 * tensor)
    yield Work("row", 0.0, 2 * tensor)
    walk = (3 * near + sheared) * tile_bytes
    yield Work("key_value", (4 * near + bands + 4 * far + sheared) * product, 6 * tensor + walk)
    yield Work("query", (near + sheared + 3 * far) * product, 5 * tensor + (2 * near + sheared) * tile_bytes)
    yield Work("table_gradient", 2 * sheared * product, 2 * tensor + 2 * sheared * tile_bytes)


def count_flash(shape: Shape) -> tuple[Work, Work]:
    """Attention without positions: forward, and backward in two kernels (dK and dV; dQ)."""
    product = 2.0 * shape.block**2 * shape.head_width * sum(count_tiles(shape))
    tensor = float(shape.total_tokens * shape.heads * shape.head_width * shape.item_bytes)
    return Work("flash forward", 2 * product, 4 * tensor), Work("flash backward", 7 * product, 10 * tensor)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="benchmarks.traffic", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 4096], metavar="N")
    parser.add_argument("--heads", type=int, default=12)
    options = parser.parse_args(arguments)
    print(
        f"{TENSOR_FLOPS / 1e12:.0f} TFLOP/s, {MEMORY_BYTES_PER_SECOND / 1e12} TB/s; 16,384 tokens, head width 64, bf16"
    )
    for length in options.lengths:
        shape = Shape(length, heads=options.heads)
        near, far = count_tiles(shape)
        print(f"N = {length}: {near / (near + far):.0%} of the tiles near")
        works = [*count(shape)]
        backward = Work(
            "backward",
            *(sum(getattr(x, part) for x in works[1:]) for part in ("flops", "memory_bytes")),
        )
        for work in (*works, backward, *count_flash(shape)):
            print(
                f"  {work.name:16} {work.flops / 1e9:7.1f} GFLOP  {work.memory_bytes / 1e6:7.0f} MB"
                f"  at least {work.microseconds:5.0f} us"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
