"""What the fused attention kernels cost, from the compiler: `python -m benchmarks.resources`. Needs no GPU.

What: records the launches that launch.py makes for each variant of a call, compiles exactly those for the named GPUs,
and prints registers, spills, shared memory and the instructions per score element of each inner loop, forward and
backward. Figures come from cuobjdump and ptxas, which Triton brings along. A kernel's inner loops are the loops of its
machine code that multiply matrices: one over tiles near the diagonal, and in longer sequences two over far tiles.
Used for: the table in kernels/disentangled_attention/README.md. Tested by: tests/benchmarks/test_resources.py.
Not measured: time. Instructions are those issued per thread, over score elements per thread.
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.launches import Launch, caught, compile_launch, declared_shared_bytes
from disentangled.kernels.disentangled_attention import AttentionDropout, attention_call, launch, tile_sizes
from disentangled.kernels.disentangled_attention.log_bucket import Positions

NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
CAPABILITIES = (80, 90, 100)
HEADS = 4
# Shared memory that one program may have, bytes: CUDA C++ programming guide, table of technical specifications.
SHARED_MEMORY_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass(frozen=True)
class Variant:
    """One kind of call: everything that makes the launcher compile another program."""

    dtype: torch.dtype = torch.bfloat16
    head_width: int = 64
    num_tokens: int = 512
    terms: str = "c2p+p2c"
    layout: str = "padded"
    has_mask: bool = False
    has_dropout: bool = False

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        extras = [self.layout, self.terms] + ["mask"] * self.has_mask + ["dropout"] * self.has_dropout
        return f"{dtype} width {self.head_width} tokens {self.num_tokens} {' '.join(extras)}"


# The base model's length, then a length with far tiles, in every kind of call.
CALLS: tuple[dict[str, Any], ...] = (
    {},
    {"num_tokens": 4096},
    {"num_tokens": 4096, "has_dropout": True},
    {"num_tokens": 4096, "has_mask": True},
    {"num_tokens": 4096, "has_mask": True, "has_dropout": True},
    {"num_tokens": 4096, "layout": "packed"},
    {"num_tokens": 4096, "layout": "packed", "has_dropout": True},
    {"num_tokens": 4096, "terms": "c2p"},
    {"num_tokens": 4096, "terms": "p2c"},
    {"num_tokens": 4096, "terms": "none"},
)
# Other tile sizes, in the calls that need most registers. Not float32 at 128, which spills and which dispatch.py leaves
# to torch.
OTHER_SHAPES = ((torch.float16, 64), (torch.float32, 64), (torch.bfloat16, 32), (torch.bfloat16, 128))


# Those compiled without --all.
FIRST_VARIANTS = (Variant(), Variant(num_tokens=4096), Variant(num_tokens=4096, has_mask=True, has_dropout=True))


def variants() -> Iterator[Variant]:
    """All that are compiled."""
    for call in CALLS:
        yield Variant(**call)
    for dtype, head_width in OTHER_SHAPES:
        for call in (CALLS[1], CALLS[4]):
            yield Variant(dtype=dtype, head_width=head_width, **call)


def recorded_launches(variant: Variant, capability: int = 90) -> list[Launch]:
    """Every launch of one forward and backward pass on such a GPU, in order; nothing is computed."""
    launches: list[Launch] = []
    with caught(launches.append, capability, attention_call, launch, tile_sizes):
        _run(variant)
    return launches


def _run(variant: Variant) -> None:
    heads, tokens, width = HEADS, variant.num_tokens, variant.head_width
    leading = (tokens,) if variant.layout == "packed" else (1, tokens)
    query, key, value, grad_out = (torch.empty(*leading, heads, width, dtype=variant.dtype) for _ in range(4))
    table = torch.empty(heads, 512, width, dtype=variant.dtype)
    cu_seqlens = torch.tensor([0, tokens], dtype=torch.int32) if variant.layout == "packed" else None
    document = torch.zeros(1, dtype=torch.int64)
    problem = attention_call.Problem(
        positions=Positions(256, 512),
        scale=(3 * width) ** -0.5,
        key_padding_mask=torch.ones(1, tokens, dtype=torch.bool) if variant.has_mask else None,
        cu_seqlens_q=cu_seqlens,
        cu_seqlens_k=cu_seqlens,
        dropout=AttentionDropout(0.1, 2, 4, 2, document, document) if variant.has_dropout else None,
    )
    rel_key = table if "c2p" in variant.terms else None
    rel_query = table if "p2c" in variant.terms else None
    out, lse = launch.forward(query, key, value, rel_key, rel_query, problem)
    launch.backward(grad_out, query, key, value, rel_key, rel_query, out, lse, problem)


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses. loop_instructions: instructions of each inner loop per score element."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    loop_instructions: tuple[float, ...]


def resources_of(recorded: Launch, capability: int) -> Resources:
    """Of the program that would have been launched; RuntimeError as launches.compile_launch has it."""
    compiled = compile_launch(recorded, capability)
    arguments = recorded.arguments
    block = arguments.get("BLOCK", 1)
    elements = arguments.get("BLOCK_M", block) * arguments.get("BLOCK_V", block)
    return _read_resources(compiled, capability, elements / (arguments.get("num_warps", 4) * 32))


def _read_resources(compiled: Any, capability: int, elements_per_thread: float) -> Resources:
    with tempfile.TemporaryDirectory() as folder:
        binary, assembly = Path(folder) / "kernel.cubin", Path(folder) / "kernel.ptx"
        binary.write_bytes(compiled.asm["cubin"])
        assembly.write_text(compiled.asm["ptx"])
        usage = _tool("cuobjdump", "-res-usage", str(binary)).stdout
        machine_code = _tool("cuobjdump", "-sass", str(binary)).stdout
        target = re.search(r"\.target (sm_\w+)", compiled.asm["ptx"])
        assert target is not None
        assembler = "ptxas-blackwell" if capability >= 100 else "ptxas"
        verbose = _tool(assembler, "-v", "--gpu-name", target[1], str(assembly), "-o", os.devnull).stderr
    registers = re.search(r"REG:(\d+)", usage)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", verbose)
    assert registers is not None and spills is not None, f"no resources in: {usage} {verbose}"
    return Resources(
        registers=int(registers[1]),
        spill_bytes=int(spills[1]) + int(spills[2]),
        shared_bytes=compiled.metadata.shared + declared_shared_bytes(compiled),
        loop_instructions=tuple(count / elements_per_thread for count in inner_loops(machine_code)),
    )


def _tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([NVIDIA_TOOLS / name, *arguments], capture_output=True, text=True, check=False)


def inner_loops(machine_code: str) -> list[int]:
    """Instructions of each innermost loop that multiplies matrices, in order; a loop is a branch backwards."""
    instructions = re.findall(
        r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)$", machine_code, re.M
    )
    place = {int(address, 16): index for index, (address, _, _) in enumerate(instructions)}
    loops = []
    for index, (_, operation, operands) in enumerate(instructions):
        target = re.search(r"(0x[0-9a-f]+)", operands) if operation.split(".")[0] == "BRA" else None
        start = place.get(int(target[1], 16), index) if target else index
        if start < index:
            names = collections.Counter(name.split(".")[0] for _, name, _ in instructions[start : index + 1])
            if names["HGMMA"] + names["HMMA"] + names["UTCHMMA"] or names["FFMA"] > 256:
                loops.append((start, index))
    innermost = [x for x in loops if not any(x != y and x[0] <= y[0] and y[1] <= x[1] for y in loops)]
    return [stop - start + 1 for start, stop in innermost]


def rows(chosen: Sequence[Variant], capabilities: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row for each kernel of a step that is launched, in order."""
    for variant in chosen:
        for capability in capabilities:
            for recorded in recorded_launches(variant, capability):
                resources = resources_of(recorded, capability)
                yield {
                    "capability": capability,
                    "variant": str(variant),
                    "kernel": recorded.name.removesuffix("_kernel"),
                    "far": bool(recorded.arguments.get("IS_FAR", False)),
                    "fits": resources.shared_bytes <= SHARED_MEMORY_BYTES[capability],
                    **dataclasses.asdict(resources),
                }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code is 1 where a kernel spills or does not fit."""
    parser = argparse.ArgumentParser(prog="benchmarks.resources", description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", nargs="+", type=int, default=[90], choices=CAPABILITIES, metavar="80")
    parser.add_argument("--all", action="store_true", help="all variants and GPUs (takes long), not three on one")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file, too")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled: unset it")
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    failed, title = False, ""
    chosen = tuple(variants()) if options.all else FIRST_VARIANTS
    for row in rows(chosen, CAPABILITIES if options.all else options.capabilities):
        if title != (title := f"sm_{row['capability']} {row['variant']}"):
            print(title)
        loops = " ".join(f"{count:.1f}" for count in row["loop_instructions"]) or "-"
        print(
            f"  {row['kernel'] + ' (far)' * row['far']:20} registers {row['registers']:3}"
            f"  spills {row['spill_bytes']:4} B  shared {row['shared_bytes']:6} B  instructions per element {loops}",
            flush=True,
        )
        if options.jsonl:
            with options.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        failed |= row["spill_bytes"] > 0 or not row["fits"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
