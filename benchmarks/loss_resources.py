"""What the fused masked language modelling loss costs, from the compiler: `python -m benchmarks.loss_resources`.

What: as benchmarks/resources.py does for attention: records the launches of a forward and a backward pass, compiles
exactly those for the named GPUs, and prints registers, spills, shared memory and the instructions of the innermost
loops per logit. Such a loop is a step along the width, or a whole logit where the compiler has unrolled the steps.
Needs no GPU.
Used for: the table in kernels/masked_lm_loss/README.md. Tested by: tests/benchmarks/test_loss_resources.py.
Not measured: time.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks.launches import Launch, caught
from benchmarks.resources import CAPABILITIES, SHARED_MEMORY_BYTES, resources_of
from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, launch

NUM_ROWS = 300  # neither 1 nor a multiple of 16: what a launch may meet


@dataclass(frozen=True)
class Variant:
    """One kind of call: everything that makes the launcher compile another program."""

    dtype: torch.dtype = torch.bfloat16
    table_dtype: torch.dtype = torch.bfloat16
    width: int = 768
    num_ids: int = 128_100

    def __str__(self) -> str:
        dtypes = " of ".join(str(x).removeprefix("torch.") for x in (self.dtype, self.table_dtype))
        return f"{dtypes} table, width {self.width}, {self.num_ids} ids"


VARIANTS = (
    Variant(),
    Variant(table_dtype=torch.float32),  # under autocast
    Variant(torch.float16, torch.float16, width=1024),
    Variant(torch.float32, torch.float32),
    Variant(width=1536, num_ids=251_000),
    Variant(width=200, num_ids=32_000),
)


def recorded_launches(variant: Variant, capability: int) -> list[Launch]:
    """Every launch of a forward pass and the first of a backward pass; nothing is computed."""
    launches: list[Launch] = []
    rows = torch.zeros(NUM_ROWS, dtype=torch.int64)
    draw = Draw(2, Stream.REPLACEMENT, rows, rows, torch.zeros(variant.num_ids, dtype=torch.bool))
    hidden = torch.zeros(NUM_ROWS, variant.width, dtype=variant.dtype)
    table = torch.zeros(1, variant.width, dtype=variant.table_dtype).expand(variant.num_ids, -1)
    bias = torch.zeros(variant.num_ids, dtype=variant.table_dtype)
    with caught(launches.append, capability, launch):
        launch.forward(hidden, table, bias, rows, draw)
        # One chunk's products are enough: all chunks are launched alike.
        launch.backward(torch.ones(()), hidden, table[:4096], bias[:4096], rows, *torch.zeros(2, NUM_ROWS))
    return launches[:3]


def rows_of(chosen: Sequence[Variant], capabilities: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One row for each kernel, in order."""
    for variant in chosen:
        for capability in capabilities:
            for recorded in recorded_launches(variant, capability):
                resources = resources_of(recorded, capability)
                yield {
                    "capability": capability,
                    "variant": str(variant),
                    "kernel": recorded.name.removesuffix("_kernel"),
                    "fits": resources.shared_bytes <= SHARED_MEMORY_BYTES[capability],
                    **dataclasses.asdict(resources),
                }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; the exit code is 1 where a kernel spills or does not fit."""
    parser = argparse.ArgumentParser(prog="benchmarks.loss_resources", description=__doc__.splitlines()[0])
    parser.add_argument("--capabilities", nargs="+", type=int, default=[90], choices=CAPABILITIES, metavar="80")
    parser.add_argument("--all", action="store_true", help="all variants and GPUs, not only the first")
    parser.add_argument("--jsonl", type=Path, help="append the rows to this file, too")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled: unset it")
    print(f"triton {triton.__version__}, torch {torch.__version__}")
    failed, title = False, ""
    chosen = VARIANTS if options.all else VARIANTS[:1]
    for row in rows_of(chosen, CAPABILITIES if options.all else options.capabilities):
        if title != (title := f"sm_{row['capability']} {row['variant']}"):
            print(title)
        loops = " ".join(f"{count:.1f}" for count in row["loop_instructions"]) or "-"
        print(
            f"  {row['kernel']:12} registers {row['registers']:3}  spills {row['spill_bytes']:4} B"
            f"  shared {row['shared_bytes']:6} B  instructions per logit {loops}",
            flush=True,
        )
        if options.jsonl:
            with options.jsonl.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        failed |= row["spill_bytes"] > 0 or not row["fits"]
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
