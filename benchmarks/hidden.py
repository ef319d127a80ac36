"""Ops on hidden activations: `python -m benchmarks.hidden`. On a GPU times, elsewhere what the compiler says.

What: forward and backward over [16384, width], for dropout and for the residual norm: the fused kernels, plain torch
with the counter RNG (compiled by torch too, for the norm), and torch's own dropout, whose random numbers have a state
and cannot be repeated on another number of ranks. The norm is timed in bfloat16 throughout and as under autocast, with
residual and weights in float32 and its result in both types. The ops' tests must be green, and our dropouts agree to
the bit, before anything is timed. With `--resources`, and without a GPU, kernels are compiled ahead of time instead:
registers, spills, shared memory; the exit code is 1 where one spills.
Tested by: tests/benchmarks/test_hidden.py. Figures: kernels/hidden_dropout/README.md, kernels/residual_norm/README.md.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from benchmarks.environment import describe_environment, device_name
from benchmarks.launches import Launch, caught
from benchmarks.measure import milliseconds
from benchmarks.ops import device_folder
from benchmarks.resources import CAPABILITIES, resources_of
from benchmarks.tests_first import own_tests_pass
from disentangled.kernels.hidden_dropout import dropout, fused
from disentangled.kernels.residual_norm import fused as norm_kernels
from disentangled.kernels.residual_norm import residual_norm

TESTS = ("tests/kernels/test_hidden_dropout.py", "tests/kernels/test_residual_norm.py")
ROWS, WIDTHS, PROBABILITY, EPS = 16_384, (384, 768, 1024), 0.1, 1e-7
KEYS = {"seed": 1, "stream": 3, "layer": 5, "site": 1}
DEVICE, DTYPE = "cuda", torch.bfloat16
RESULTS = Path(__file__).parent / "results"
# Types of the branch, and of residual and weights.
PRECISIONS = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "autocast": (torch.bfloat16, torch.float32),
    "float32": (torch.float32, torch.float32),
}
Variant = Callable[..., tuple[Tensor, ...]]


@dataclasses.dataclass(frozen=True)
class Case:
    """An op's inputs, and its variants by name."""

    op: str
    inputs: tuple[Tensor, ...]
    variants: dict[str, Variant]


def resources(capabilities: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each precision, width, kernel and GPU; dropout has no other kernel under autocast."""
    for precision, (dtype, wide) in PRECISIONS.items():
        for width in WIDTHS:
            launches: list[Launch] = []
            x, places, rows = torch.zeros(ROWS, width, dtype=dtype), torch.zeros(ROWS, dtype=torch.int64), ROWS
            keys, number = (PROBABILITY, 1, 3, 5, places, places, 1 << 24), torch.zeros(rows)
            y, is_autocast = x.to(wide), wide != dtype
            with caught(launches.append, capabilities[0], fused, norm_kernels):
                if not is_autocast:
                    fused.launch(x, *keys)
                norm_kernels.forward(x, y, y[0], y[0], EPS, dtype if is_autocast else None, *keys)
                norm_kernels.backward(y, x if is_autocast else None, x, y, y[0], y[0], number, number, *keys)
            for launch in launches:
                for capability in capabilities:
                    head = {"capability": capability, "precision": precision, "width": width}
                    yield head | {"kernel": launch.name, **dataclasses.asdict(resources_of(launch, capability))}


def dropout_case(width: int) -> Case:
    """Dropout in bfloat16; the first variant is ours.

    Raises:
        ArithmeticError: the two of ours differ.
    """
    places = torch.arange(ROWS, device=DEVICE)
    x = torch.randn(ROWS, width, device=DEVICE, dtype=DTYPE, requires_grad=True)

    def ours(implementation: str) -> Variant:
        return lambda x: (dropout(x, PROBABILITY, **KEYS, sample=places, token=places, implementation=implementation),)

    made = {"triton": ours("triton"), "torch": ours("torch")}
    if not torch.equal(made["triton"](x)[0], made["torch"](x)[0]):
        raise ArithmeticError(f"the kernel and plain torch differ at width {width}: no times")
    return Case("dropout", (x,), made | {"torch.nn.functional": lambda x: (F.dropout(x, PROBABILITY),)})


def norm_case(width: int, wide: torch.dtype) -> Case:
    """The residual norm of a bfloat16 branch; `wide`: of the residual and the weights, as under autocast if another."""
    places = torch.arange(ROWS, device=DEVICE)
    x = torch.randn(ROWS, width, device=DEVICE, dtype=DTYPE)
    residual, weight = torch.randn(ROWS, width, device=DEVICE, dtype=wide), torch.ones(width, device=DEVICE, dtype=wide)
    inputs = tuple(values.requires_grad_() for values in (x, residual, weight, torch.zeros_like(weight)))
    is_autocast = wide != DTYPE

    def ours(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(DEVICE, DTYPE, enabled=is_autocast):
            results = residual_norm(
                *inputs, EPS, PROBABILITY, **KEYS, sample=places, token=places, implementation="triton"
            )
        return results if is_autocast else results[:1]

    def norm(dropped: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        out = F.layer_norm(dropped + residual, weight.shape, weight, bias, EPS)
        return (out, out.to(DTYPE)) if is_autocast else (out,)

    def eager(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return norm(F.dropout(x, PROBABILITY), *others)

    def fused_dropout(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        dropped = dropout(x, PROBABILITY, **KEYS, sample=places, token=places, implementation="triton")
        return norm(dropped, *others)

    variants = {"triton": ours, "triton dropout, torch": fused_dropout, "torch.nn.functional": eager}
    return Case("residual_norm", inputs, variants | {"torch.compile": torch.compile(eager)})


def times(case: Case) -> Iterator[dict[str, Any]]:
    """A row for each variant on this GPU."""
    x = case.inputs[0]
    shape = {"width": x.shape[1], "rows": ROWS, "dtypes": [str(y.dtype).removeprefix("torch.") for y in case.inputs]}
    for name, variant in case.variants.items():
        upstream = tuple(torch.randn_like(result) for result in variant(*case.inputs))

        def both(variant: Variant = variant, upstream: tuple[Tensor, ...] = upstream) -> tuple[Tensor, ...]:
            return torch.autograd.grad(variant(*case.inputs), case.inputs, upstream)

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        both()
        peak = torch.cuda.max_memory_allocated() - before
        median, low, high = milliseconds(both, x.device)
        row = {"op": case.op, "variant": name, **shape, "milliseconds": median, "p20": low, "p80": high}
        yield row | {"extra_memory_bytes": peak}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.hidden", description=__doc__.splitlines()[0])
    parser.add_argument("--resources", action="store_true", help="compile ahead of time, on a GPU too")
    parser.add_argument("--capabilities", nargs="+", type=int, default=[90], choices=CAPABILITIES, metavar="80")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    options = parser.parse_args(arguments)
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled: unset it")
    if options.resources or not torch.cuda.is_available():
        rows = []
        for row in resources(options.capabilities):
            print(json.dumps(row), flush=True)
            rows.append(row)
        return int(any(row["spill_bytes"] for row in rows))
    if not own_tests_pass(*TESTS):
        return 1
    command = ["python", "-m", "benchmarks.hidden", *(sys.argv[1:] if arguments is None else arguments)]
    head = describe_environment(device_name(), ("torch", "triton"), command)
    folder = options.output or RESULTS / device_folder(device_name())
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "hidden.jsonl").open("a", encoding="utf-8") as file:
        for width in WIDTHS:
            for case in (dropout_case(width), norm_case(width, DTYPE), norm_case(width, torch.float32)):
                for row in times(case):
                    file.write(json.dumps(head | row) + "\n")
                    print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
