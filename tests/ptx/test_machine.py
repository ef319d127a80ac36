"""The machine that runs compiled programs: its arithmetic, its errors, and that races show."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest
import torch

from tests.ptx.machine import Machine
from tests.ptx.memory import AccessError, GlobalMemory, shared_memory
from tests.ptx.program import parse

WARPS = 2
THREADS = 32 * WARPS
HEAD = ".visible .entry k(.param .u64 k_param_0, .param .u64 k_param_1)\n{\n.reg .b32 %r<9>;\n"
# %rd1: where this thread's four bytes of the first tensor are; %r1: its number; %r2: the number's address in bytes
PLACE = """
    mov.u32 %r1, %tid.x;
    shl.b32 %r2, %r1, 2;
    cvt.u64.u32 %rd2, %r2;
    ld.param.b64 %rd1, [k_param_0];
    add.s64 %rd1, %rd1, %rd2;
"""


def run(body: str, *tensors: torch.Tensor, seed: int = 0) -> None:
    """One block of 64 threads, with 1 KiB of shared memory."""
    machine = Machine(parse(f"{HEAD}{body}\nret;\n}}"))
    values = [x.data_ptr() for x in tensors]
    with np.errstate(all="ignore"):
        machine.run((0, 0, 0), (1, 1, 1), WARPS, values, GlobalMemory(tensors), shared_memory(1024), Random(seed))


def compute(instruction: str, *operands: int) -> int:
    """What an instruction leaves in a register of 32 bits (%r9) of the first lane, of operands in %r3, %r4, %r5."""
    out = torch.zeros(THREADS, dtype=torch.int32)
    loads = "".join(f"mov.b32 %r{3 + place}, {value};" for place, value in enumerate(operands))
    run(f"{PLACE}{loads}{instruction};st.global.b32 [%rd1], {{ %r9 }};", out)
    return int(out[0]) % 2**32


def bits(*numbers: float) -> list[int]:
    return [int(np.float32(number).view(np.uint32)) for number in numbers]


@pytest.mark.parametrize(
    ("instruction", "operands", "expected"),
    [
        ("add.s32 %r9, %r3, -1", [0], 2**32 - 1),
        ("mul.hi.u32 %r9, %r3, %r4", [2**32 - 1, 2**31], 2**31 - 1),
        ("mad.lo.s32 %r9, %r3, %r4, %r5", [2**20, 2**20 + 1, 5], 2**20 + 5),
        ("shr.s32 %r9, %r3, %r4", [2**31, 40], 2**32 - 1),
        ("shr.u32 %r9, %r3, %r4", [2**31, 40], 0),
        ("shl.b32 %r9, %r3, %r4", [3, 32], 0),
        ("shf.l.wrap.b32 %r9, %r3, %r4, %r5", [0x80000000, 1, 4], 0x18),
        ("prmt.b32 %r9, %r3, %r4, %r5", [0x33221100, 0x776655C4, 0xC740], 0xFF77C400),
        ("bfe.u32 %r9, %r3, 4, 3", [0xF50], 5),
        ("bfe.s32 %r9, %r3, 4, 3", [0xF50], 2**32 - 3),
        ("div.s32 %r9, %r3, %r4", [2**32 - 7, 2], 2**32 - 3),
        ("min.s32 %r9, %r3, %r4", [2**32 - 1, 1], 2**32 - 1),
        ("setp.lt.s32 %p1, %r3, %r4; selp.b32 %r9, 1, 0, %p1", [2**32 - 1, 0], 1),
        ("setp.lt.u32 %p1, %r3, %r4; selp.b32 %r9, 1, 0, %p1", [2**32 - 1, 0], 0),
        ("setp.num.f32 %p1, %r3, %r3; selp.b32 %r9, 1, 0, %p1", bits(np.nan), 0),
        ("setp.neu.f32 %p1, %r3, %r3; selp.b32 %r9, 1, 0, %p1", bits(np.nan), 1),
        ("max.f32 %r9, %r3, %r4", bits(np.nan, 2.0), bits(2.0)[0]),
        ("fma.rn.f32 %r9, %r3, %r4, %r5", bits(1 + 2**-12, 1 - 2**-12, -1.0), bits(-(2.0**-24))[0]),
        ("ex2.approx.ftz.f32 %r9, %r3", bits(-140.0), 0),
        ("cvt.rn.bf16x2.f32 %r9, %r3, %r4", bits(1 + 2**-8, 1 + 3 * 2**-8), 0x3F803F82),
        ("add.bf16x2 %r9, %r3, %r4", [0x3F804000, 0x3F803F80], 0x40004040),
        ("fma.rn.f16x2 %r9, %r3, %r4, %r5", [0x3C004000, 0x40004000, 0x3C003C00], 0x42004500),
        ("cvt.rna.tf32.f32 %r9, %r3", bits(1 + 2**-11), bits(1 + 2**-10)[0]),
        ("mov.b32 {%rs1, %rs2}, %r3; mov.b32 %r9, {%rs2, %rs1}", [0x12345678], 0x56781234),
        ("mov.b32 %r9, 7; setp.eq.s32 %p1, %r3, 0; @%p1 mov.b32 %r9, 8", [1], 7),
        ("shfl.sync.bfly.b32 %r9, %r1, 5, 31, -1", [], 5),
        ("shfl.sync.up.b32 %r9, %r1, 1, 0, -1; add.s32 %r9, %r9, 5", [], 5),
        ("shfl.sync.up.b32 %r3, %r1, 1, 0, -1; shfl.sync.idx.b32 %r9, %r3, 9, 31, -1", [], 8),
        ("shfl.sync.down.b32 %r3, %r1, 2, 31, -1; shfl.sync.idx.b32 %r9, %r3, 30, 31, -1", [], 30),
        ("sub.s32 %r3, 9, %r1; redux.sync.min.s32 %r9, %r3, 65535", [], 2**32 - 6),
        ("shfl.sync.idx.b32 %r9, %r1, 9, 31, -1", [], 9),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_an_instruction_gives_what_a_gpu_does(instruction: str, operands: Sequence[int], expected: int) -> None:
    assert compute(instruction, *operands) == expected


def test_loops_end_where_their_condition_says() -> None:
    out = torch.zeros(THREADS, dtype=torch.int32)
    loop = "mov.b32 %r3, 0;\n$L1:\nadd.s32 %r3, %r3, 2;\nsetp.lt.s32 %p1, %r3, 9;\n@%p1 bra $L1;\n"
    run(f"{PLACE}{loop}st.global.b32 [%rd1], {{ %r3 }};", out)
    assert set(out.tolist()) == {10}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd1+256], { %r1 };", r"4 bytes at \d+ to \d+ of 256"),
        ("ld.shared.v2.b32 { %r3, %r4 }, [%r2];", "8 bytes at an address that is no multiple"),
        ("ld.shared.b32 %r3, [%r2+1000];", "of 1024"),
        ("mov.b64 %rd1, 64; ld.global.b32 %r3, [%rd1];", "before all tensors"),
    ],
    ids=["outside", "unaligned", "shared", "nowhere"],
)
def test_what_a_gpu_would_trap_or_hide_is_an_error(body: str, message: str) -> None:
    with pytest.raises(AccessError, match=message):
        run(f"{PLACE}{body}", torch.zeros(THREADS, dtype=torch.int32))


def test_what_the_machine_does_not_know_is_named() -> None:
    with pytest.raises(NotImplementedError, match="atom"):
        run("atom.global.add.u32 %r3, [%rd1], %r1;")
    with pytest.raises(NotImplementedError, match="part at a branch"):
        run(f"{PLACE}setp.lt.s32 %p1, %r1, 5;\n@%p1 bra $L1;\n$L1:")


def results(body: str) -> set[tuple[int, ...]]:
    """What twenty runs leave in the first tensor; the second holds 100, 101 and so on."""
    found = set()
    for seed in range(20):
        out = torch.zeros(THREADS, dtype=torch.int32)
        run(PLACE + body, out, torch.arange(100, 100 + THREADS, dtype=torch.int32), seed=seed)
        found.add(tuple(out.tolist()))
    return found


EXCHANGE = """
    st.shared.b32 [%r2], {{ %r1 }};
    {between}
    xor.b32 %r3, %r2, 128;
    ld.shared.b32 %r4, [%r3];
    st.global.b32 [%rd1], {{ %r4 }};
"""


def test_a_barrier_that_is_missing_shows() -> None:
    other = tuple(number ^ 32 for number in range(THREADS))
    assert results(EXCHANGE.format(between="bar.sync 0;")) == {other}
    assert len(results(EXCHANGE.format(between=""))) > 1


def test_memory_overwritten_too_early_shows() -> None:
    again = "{between} st.shared.b32 [%r2], {{ 7 }};"
    exchanged = EXCHANGE.format(between="bar.sync 0;")
    assert len(results(exchanged + again.format(between="bar.sync 0;"))) == 1
    assert len(results(exchanged + again.format(between=""))) > 1


COPY = """
    ld.param.b64 %rd3, [k_param_1];
    add.s64 %rd3, %rd3, %rd2;
    cp.async.ca.shared.global [%r2], [%rd3], 4, 4;
    cp.async.commit_group;
    {between}
    ld.shared.b32 %r4, [%r2];
    st.global.b32 [%rd1], {{ %r4 }};
"""


def test_a_copy_read_or_overwritten_while_in_flight_shows() -> None:
    copied = tuple(range(100, 100 + THREADS))
    assert results(COPY.format(between="cp.async.wait_group 0;")) == {copied}
    assert len(results(COPY.format(between="cp.async.wait_group 1;"))) > 1
    overwritten = "st.global.b32 [%rd3], { %r1 }; cp.async.wait_group 0;"
    assert len(results(COPY.format(between=overwritten))) > 1


def test_warps_at_different_barriers_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="different barriers"):
        run("mov.u32 %r1, %tid.x; setp.lt.s32 %p1, %r1, 32;\n@%p1 bra $L1;\nbar.sync 0;\n$L1:\nbar.sync 0;")


def test_shared_memory_that_a_program_declares_comes_before_tritons() -> None:
    declared = "{ .shared .align 16 .b8 own[512]; .reg .b32 %mine; mov.u32 %r9, own; }"
    assert compute(declared) == 0
    assert compute(f"{declared} mov.u32 %r9, global_smem") == 512
    assert compute(f"{declared} st.shared.b32 [%r9+508], %r3; ld.shared.b32 %r9, [global_smem+-4]", 7) == 7
    assert parse(f"{HEAD}{declared}\nret;\n}}").shared_bytes == 512
