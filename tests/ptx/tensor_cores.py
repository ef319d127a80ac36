"""Matrix instructions of one warp: which lane holds which element, and the products (PTX ISA 9.0, 9.7.14 and 9.7.15).

Fragments are arrays [lanes, registers]. A warp's accumulator of 16 x N numbers has four registers a lane for every 8
columns: lane 4 g + t holds rows g and g + 8 of columns 2 t and 2 t + 1. Products are summed in double and rounded to
float32 once; a GPU sums in another order, within float32's rounding.
Used by: machine.py. Tested by: tests/ptx/test_machine.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.ptx.arithmetic import LANES, Lanes, numbers_of
from tests.ptx.memory import Memory

GROUP, MEMBER = np.divmod(np.arange(LANES), 4)
HALVES = np.arange(2)
# A wgmma descriptor's layouts (bits 62 and 63), in bytes of a row of the swizzled atom.
SWIZZLES = {1: 128, 2: 64, 3: 32}


def halves_of(words: Lanes) -> Lanes:
    """uint32 [..., n] as uint16 [..., n, 2], the low half first."""
    return np.ascontiguousarray(words).view(np.uint16).reshape(*words.shape, 2)


def words_of(halves: Lanes) -> Lanes:
    """The inverse of halves_of."""
    return np.ascontiguousarray(halves).view(np.uint32)[..., 0]


def load_matrices(shared: Memory, rows: Lanes, count: int, is_transposed: bool) -> Lanes:
    """ldmatrix of `count` 8 x 8 matrices of 16 bits, uint32 [32, count]; lane 8 i + r knows row r of matrix i."""
    matrices = shared.load(rows[: 8 * count], 2, 8).reshape(count, 8, 8)
    if is_transposed:
        matrices = matrices.transpose(0, 2, 1)
    return words_of(matrices[:, GROUP[:, None], 2 * MEMBER[:, None] + HALVES]).T


def store_matrices(shared: Memory, rows: Lanes, words: Lanes, is_transposed: bool) -> None:
    """stmatrix: the inverse of load_matrices; words uint32 [32, count]."""
    count = words.shape[1]
    matrices = np.empty((count, 8, 8), np.uint16)
    matrices[:, GROUP[:, None], 2 * MEMBER[:, None] + HALVES] = halves_of(words).transpose(1, 0, 2)
    if is_transposed:
        matrices = matrices.transpose(0, 2, 1)
    shared.store(rows[: 8 * count], matrices.reshape(8 * count, 8))


def left_fragment(words: Lanes, kind: str) -> NDArray[Any]:
    """A [16, K] of four registers: K 16 for 16 bits, 8 for tf32."""
    row = GROUP[:, None] + np.array([0, 8, 0, 8])
    if kind == "tf32":
        a = np.empty((16, 8), np.uint32)
        a[row, MEMBER[:, None] + np.array([0, 0, 4, 4])] = words
        return numbers_of(a & 0xFFFFE000, "f32")
    bits = np.empty((16, 16), np.uint16)
    column = 2 * MEMBER[:, None] + np.array([0, 0, 8, 8])
    bits[row[:, :, None], column[:, :, None] + HALVES] = halves_of(words)
    return numbers_of(bits, kind)


def right_fragment(words: Lanes, kind: str) -> NDArray[Any]:
    """B [K, 8] of two registers."""
    if kind == "tf32":
        b = np.empty((8, 8), np.uint32)
        b[MEMBER[:, None] + np.array([0, 4]), GROUP[:, None]] = words
        return numbers_of(b & 0xFFFFE000, "f32")
    bits = np.empty((16, 8), np.uint16)
    row = 2 * MEMBER[:, None] + np.array([0, 8])
    bits[row[:, :, None] + HALVES, GROUP[:, None, None]] = halves_of(words)
    return numbers_of(bits, kind)


def accumulator_of(words: Lanes) -> NDArray[Any]:
    """float32 [16, N] of N / 2 registers."""
    numbers = words.view(np.float32).reshape(LANES, -1, 2, 2)  # lane, block of 8 columns, row, column
    matrix = np.empty((16, numbers.shape[1] * 8), np.float32)
    for half in (0, 1):
        for place in (0, 1):
            matrix.reshape(16, -1, 8)[GROUP + 8 * half, :, 2 * MEMBER + place] = numbers[:, :, half, place]
    return matrix


def words_of_accumulator(matrix: NDArray[Any]) -> Lanes:
    """The inverse of accumulator_of: uint32 [32, N / 2]."""
    blocks = matrix.astype(np.float32).reshape(16, -1, 8)
    numbers = np.empty((LANES, blocks.shape[1], 2, 2), np.float32)
    for half in (0, 1):
        for place in (0, 1):
            numbers[:, :, half, place] = blocks[GROUP + 8 * half, :, 2 * MEMBER + place]
    return numbers.reshape(LANES, -1).view(np.uint32)


def multiply(a: NDArray[Any], b: NDArray[Any], c: Lanes) -> Lanes:
    """The accumulator c [32, N / 2] with the product of a [16, K] and b [K, N] added."""
    return words_of_accumulator(a.astype(np.float64) @ b.astype(np.float64) + accumulator_of(c))


def operand_in_shared(
    shared: Memory, descriptor: int, first: int, length: int, is_transposed: bool, kind: str
) -> NDArray[Any]:
    """A wgmma operand [length, K] from shared memory, from row `first` on of those along M or N; K as left_fragment's.

    Rows along K are neighbours in memory, or, transposed, those along M or N. Both come in atoms of 8 rows that are
    swizzled: 16-byte pieces of a row are exchanged by the number of the row (section 9.7.15.5).
    """
    start = (descriptor & 0x3FFF) << 4
    leading, stride = ((descriptor >> bit & 0x3FFF) << 4 for bit in (16, 32))
    if descriptor >> 62 not in SWIZZLES or descriptor >> 49 & 7:
        raise NotImplementedError(f"wgmma with the matrix descriptor {descriptor:#x}")
    row_bytes = SWIZZLES[descriptor >> 62]
    size = 4 if kind == "tf32" else 2
    outer, inner = first + np.arange(length)[:, None], np.arange(32 // size)[None, :]
    if is_transposed:
        block, place = np.divmod(outer, row_bytes // size)
        addresses = start + block * leading + (inner // 8) * stride + (inner % 8) * row_bytes + place * size
    else:
        addresses = start + (outer // 8) * stride + (outer % 8) * row_bytes + inner * size
    addresses = addresses ^ (addresses >> 3 & row_bytes - 16)
    bits = shared.load(addresses.reshape(-1), size, 1).reshape(addresses.shape)
    return numbers_of(bits & 0xFFFFE000, "f32") if kind == "tf32" else numbers_of(bits, kind)
