"""A program that reads ahead what it writes is found in its IR, and what only looks like one is not."""

import os
import subprocess
import sys

import pytest

from benchmarks.read_ahead import written_and_read_ahead
from tests.launching import ROOT

STORE = "tt.store %to, %x : tensor<64x64x!tt.ptr<bf16>, #blocked> loc(#loc1)"
COPY = "%copy = ttg.async_copy_global_to_local %from, %y mask %z : tensor<64x64x!tt.ptr<bf16>> -> <64x64xbf16, #shared>"


def ir(*lines: str) -> str:
    """A loop body with a store to %to and a copy from %from."""
    return "\n".join(["tt.func public @kernel(%scratch_ptr: !tt.ptr<bf16> loc(#loc))", *lines, STORE, COPY])


@pytest.mark.parametrize(
    "to, read",
    [
        ("%to = tt.splat %scratch_ptr", "%from = tt.splat %scratch_ptr"),
        ("%a = tt.addptr %scratch_ptr, %b\n%to = tt.splat %a", '%from = "tt.addptr" %scratch_ptr, %c'),
        (
            "%to = tt.addptr %scratch_ptr, %b",
            "%r:2 = scf.for %i = %c0 to %n step %c1 iter_args(%p = %q, %from = %scratch_ptr) -> (i32, !tt.ptr<bf16>)",
        ),
        ("%to = arith.select %a, %b, %scratch_ptr", "%from = tt.splat %scratch_ptr"),
    ],
    ids=["plainly", "by offsets", "carried by the loop", "one of two"],
)
def test_memory_both_written_and_read_ahead_is_named(to: str, read: str) -> None:
    assert written_and_read_ahead(ir(to, read)) == {"scratch_ptr"}


@pytest.mark.parametrize(
    "to, read",
    [
        ("%to = tt.splat %scratch_ptr", "%from = tt.splat %table_ptr"),
        ("%to = tt.addptr %out_ptr, %b", "%from = tt.addptr %table_ptr, %b"),
        ("%to = arith.select %b, %out_ptr, %other_ptr", "%from = arith.select %b, %table_ptr, %key_ptr"),
    ],
    ids=["another", "at equal offsets", "chosen alike"],
)
def test_other_memory_is_not(to: str, read: str) -> None:
    assert written_and_read_ahead(ir(to, read)) == set()


def loop(carried: str, from_argument: str, line: str) -> str:
    """A loop that carries a pointer."""
    return f"scf.for %i = %c0 to %n step %c1 iter_args({carried} = %{from_argument}) -> (!tt.ptr<bf16>)\n{line}"


def test_a_name_is_another_one_in_the_next_loop() -> None:
    copy, store = COPY.replace("%from", "%arg1"), STORE.replace("%to", "%arg1")
    one_memory = [loop("%arg1", "scratch_ptr", copy), loop("%arg1", "scratch_ptr", store)]
    others = [loop("%arg1", "scratch_ptr", copy), loop("%arg1", "out_ptr", store)]
    assert written_and_read_ahead("\n".join(one_memory)) == {"scratch_ptr"}
    assert written_and_read_ahead("\n".join(others)) == set()


def test_loops_are_looked_at_one_by_one() -> None:
    header, end = "scf.for %i = %c0 to %n step %c1 : i32 {", "} loc(#loc1)"
    copy, store = COPY.replace("%from", "%scratch_ptr"), STORE.replace("%to", "%scratch_ptr")
    assert written_and_read_ahead("\n".join([header, copy, end, header, store, end])) == set()
    assert written_and_read_ahead("\n".join([header, copy, store, end, header, end])) == {"scratch_ptr"}
    assert written_and_read_ahead("\n".join([header, copy, header, store, end, end])) == {"scratch_ptr"}


def test_triton_does_read_ahead_what_a_loop_writes_and_such_a_program_is_refused() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.benchmarks.reads_ahead"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "through_scratch_kernel at sm_90 reads scratch_ptr ahead, which it writes itself" in ended.stderr
