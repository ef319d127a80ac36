"""Dropout of hidden activations: `python -m benchmarks.dropout`. On a GPU times, elsewhere what the compiler says.

What: forward and backward over [16384, width] for plain torch with the counter RNG, the fused kernel, and torch's own
dropout, whose random numbers have a state and cannot be repeated on another number of ranks: what ours costs. The op's
tests must be green, and the two of ours agree to the bit, before anything is timed. With `--resources`, and without a
GPU, the kernel is compiled ahead of time instead: registers, spills, shared memory; the exit code is 1 where it spills.
Tested by: tests/benchmarks/test_dropout.py. Figures: kernels/hidden_dropout/README.md.
"""

import argparse
import dataclasses
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from benchmarks.environment import describe_environment, device_name
from benchmarks.launches import Launch, caught
from benchmarks.measure import milliseconds
from benchmarks.ops import device_folder
from benchmarks.resources import CAPABILITIES, resources_of
from disentangled.kernels.hidden_dropout import dropout, fused

TESTS = "tests/kernels/test_hidden_dropout.py"
ROWS, WIDTHS, PROBABILITY = 16_384, (384, 768, 1024), 0.1
KEYS = {"seed": 1, "stream": 3, "layer": 5, "site": 1}
RESULTS = Path(__file__).parent / "results"


def resources(dtypes: Sequence[torch.dtype], capabilities: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each dtype, width and GPU."""
    for dtype in dtypes:
        for width in WIDTHS:
            launches: list[Launch] = []
            places = torch.zeros(ROWS, dtype=torch.int64)
            with caught(launches.append, capabilities[0], fused):
                fused.launch(torch.zeros(ROWS, width, dtype=dtype), PROBABILITY, 1, 3, 5, places, places, 1 << 24)
            for capability in capabilities:
                found = resources_of(launches[0], capability)
                name = str(dtype).removeprefix("torch.")
                yield {"capability": capability, "dtype": name, "width": width, **dataclasses.asdict(found)}


def variants(places: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """What is timed; the first is ours."""

    def ours(implementation: str) -> Callable[[Tensor], Tensor]:
        return lambda x: dropout(x, PROBABILITY, **KEYS, sample=places, token=places, implementation=implementation)

    return {
        "triton": ours("triton"),
        "torch": ours("torch"),
        "torch.nn.functional": lambda x: torch.nn.functional.dropout(x, PROBABILITY),
    }


def times(width: int, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row for each variant on this GPU.

    Raises:
        ArithmeticError: the two of ours differ.
    """
    places = torch.arange(ROWS, device="cuda")
    x = torch.randn(ROWS, width, device="cuda", dtype=dtype, requires_grad=True)
    gradient = torch.randn_like(x)
    made = variants(places)
    if not torch.equal(made["triton"](x), made["torch"](x)):
        raise ArithmeticError(f"the kernel and plain torch differ at width {width} in {dtype}: no times")
    for name, variant in made.items():

        def both(variant: Callable[[Tensor], Tensor] = variant) -> Tensor:
            return torch.autograd.grad(variant(x), x, gradient)[0]

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        peak = torch.cuda.max_memory_allocated() - before
        median, low, high = milliseconds(both, x.device)
        row = {"variant": name, "width": width, "rows": ROWS, "dtype": str(dtype).removeprefix("torch.")}
        yield row | {"milliseconds": median, "p20": low, "p80": high, "extra_memory_bytes": peak}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.dropout", description=__doc__.splitlines()[0])
    parser.add_argument("--resources", action="store_true", help="compile ahead of time, on a GPU too")
    parser.add_argument("--capabilities", nargs="+", type=int, default=[90], choices=CAPABILITIES, metavar="80")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled: unset it")
    if options.resources or not torch.cuda.is_available():
        rows = list(resources((torch.bfloat16, torch.float32), options.capabilities))
        for row in rows:
            print(json.dumps(row))
        return int(any(row["spill_bytes"] for row in rows))
    tests = [sys.executable, "-m", "pytest", "-q", "-x", TESTS]
    if subprocess.run(tests).returncode != 0:
        print(f"red tests, so no numbers: {shlex.join(tests)}")
        return 1
    command = ["python", "-m", "benchmarks.dropout", *(sys.argv[1:] if arguments is None else arguments)]
    head = describe_environment(device_name(), ("torch", "triton"), command)
    folder = options.output or RESULTS / device_folder(device_name())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "dropout.jsonl").open("a", encoding="utf-8") as file:
        for width in WIDTHS:
            for row in times(width, torch.bfloat16):
                file.write(json.dumps(head | row) + "\n")
                print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
