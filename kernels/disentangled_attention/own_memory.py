"""Shared memory of a program's own: declared, written by rows and read along slanted rows by inline instructions.

Tensor cores cannot read a diagonal and Triton gives a program no shared memory to address, so it is declared, written
and read in PTX (ISA 9.0, sections 5.1.6 and 9.7.9). An instruction is given addresses and numbers one by one, or a few
neighbours in a row, whatever registers these lie in: nothing here depends on how Triton lays tensors out. Triton knows
nothing of this memory, so the barriers are the caller's (tiles.program_barrier), and after one the address has to be
taken anew (tiles.anew), because loads are said to be pure: Triton would repeat others in each layout that it tries.

Its interpreter knows no instructions; callers gather there instead.
Used by: bands.py, shear.py. Tested by: tests/ptx/test_compiled_kernels.py.
"""

import triton
import triton.language as tl

from disentangled.kernels.disentangled_attention.tiles import IS_INTERPRETED

PADDING = tl.constexpr(8)  # numbers between rows: eight of them lie in different banks


@triton.constexpr_function
def _declaration(num_bytes: int) -> str:
    # Triton's own shared memory follows and has to begin at a multiple of 1 KiB, as tensor cores read it swizzled.
    return f"{{ .shared .align 16 .b8 own_memory[{-(-num_bytes // 1024) * 1024}]; mov.u32 $0, own_memory; }}"


@triton.constexpr_function
def _store_pair(dtype: tl.dtype) -> str:
    if dtype.is_fp32():
        return "st.shared.v2.b32 [$1], {$2, $3}; mov.u32 $0, 0;"
    kind = "bf16" if dtype.is_bf16() else "f16"
    return f"{{ .reg .b32 %pair; cvt.rn.{kind}x2.f32 %pair, $3, $2; st.shared.b32 [$1], %pair; mov.u32 $0, 0; }}"


@triton.constexpr_function
def _size_of(dtype: tl.dtype) -> int:
    return int(dtype.primitive_bitwidth) // 8


@triton.jit
def own_memory(scalar, NUM: tl.constexpr, dtype: tl.constexpr):
    """Address of room for NUM numbers; `scalar` is any, for the instruction to have an argument. Call it once."""
    if IS_INTERPRETED:
        return scalar
    NUM_BYTES: tl.constexpr = NUM * _size_of(dtype)
    return tl.inline_asm_elementwise(_declaration(NUM_BYTES), "=r,r", [scalar], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def place_of(memory, index, dtype: tl.constexpr):
    """Address of a number."""
    return memory + index * _size_of(dtype)


@triton.jit
def store_rounded(memory, x, STRIDE: tl.constexpr, dtype: tl.constexpr):
    """Writes float32 [rows, columns], rounded to dtype, to rows of STRIDE numbers (an even number)."""
    ROWS: tl.constexpr = x.shape[0]
    PAIRS: tl.constexpr = x.shape[1] // 2
    even, odd = tl.split(tl.reshape(x, [ROWS, PAIRS, 2]))
    address = place_of(memory, tl.arange(0, ROWS)[:, None] * STRIDE + 2 * tl.arange(0, PAIRS)[None, :], dtype)
    tl.inline_asm_elementwise(
        _store_pair(dtype), "=r,r,r,r", [address, even, odd], dtype=tl.int32, is_pure=False, pack=1
    )


@triton.jit
def store_loaded(memory, x, STRIDE: tl.constexpr):
    """Writes [rows, columns] as they are, 16 bytes at a time (STRIDE a multiple of that), as they come from memory."""
    ROWS: tl.constexpr = x.shape[0]
    if _size_of(x.dtype) == 4:
        WIDE: tl.constexpr = x.shape[1] // 4
        address = place_of(memory, tl.arange(0, ROWS)[:, None] * STRIDE + 4 * tl.arange(0, WIDE)[None, :], x.dtype)
        even, odd = tl.split(tl.reshape(x, [ROWS, WIDE, 2, 2]))
        x0, x2 = tl.split(even)
        x1, x3 = tl.split(odd)
        tl.inline_asm_elementwise(
            "st.shared.v4.b32 [$1], {$2, $3, $4, $5}; mov.u32 $0, 0;",
            "=r,r,r,r,r,r", [address, x0, x1, x2, x3], dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
    else:
        EIGHTS: tl.constexpr = x.shape[1] // 8
        address = place_of(memory, tl.arange(0, ROWS)[:, None] * STRIDE + 8 * tl.arange(0, EIGHTS)[None, :], x.dtype)
        even, odd = tl.split(tl.reshape(x.to(tl.int16, bitcast=True), [ROWS, EIGHTS, 2, 2, 2]))
        even_0, even_1 = tl.split(even)
        odd_0, odd_1 = tl.split(odd)
        x0, x4 = tl.split(even_0)
        x2, x6 = tl.split(even_1)
        x1, x5 = tl.split(odd_0)
        x3, x7 = tl.split(odd_1)
        tl.inline_asm_elementwise(
            "{ .reg .b32 %a, %b, %c, %d; mov.b32 %a, {$2, $3}; mov.b32 %b, {$4, $5}; mov.b32 %c, {$6, $7};"
            " mov.b32 %d, {$8, $9}; st.shared.v4.b32 [$1], {%a, %b, %c, %d}; mov.u32 $0, 0; }",
            "=r,r,h,h,h,h,h,h,h,h", [address, x0, x1, x2, x3, x4, x5, x6, x7],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def load_slanted(
    memory, like, BLOCK: tl.constexpr, STRIDE: tl.constexpr, dtype: tl.constexpr, IS_TRANSPOSED: tl.constexpr
):
    """Numbers r * STRIDE + c at place (r, c), or (c, r) if transposed: dtype [BLOCK, BLOCK].

    `like` is any tensor: one of that shape says where Triton is to keep the result, and nothing else.
    """
    offs_r, offs_c = tl.arange(0, BLOCK)[:, None], tl.arange(0, BLOCK)[None, :]
    if IS_TRANSPOSED:
        address = place_of(memory, offs_c * STRIDE + offs_r, dtype)
    else:
        address = place_of(memory, offs_r * STRIDE + offs_c, dtype)
    SHAPE: tl.constexpr = like.shape
    if SHAPE[0] != BLOCK or SHAPE[1] != BLOCK:
        like = address
    if _size_of(dtype) == 4:
        bits = tl.inline_asm_elementwise(
            "ld.shared.b32 $0, [$1];", "=r,r,r", [address, like], tl.int32, is_pure=True, pack=1
        )
    else:
        bits = tl.inline_asm_elementwise(
            "ld.shared.b16 $0, [$1];", "=h,r,r", [address, like], tl.int16, is_pure=True, pack=1
        )
    return bits.to(dtype, bitcast=True)
