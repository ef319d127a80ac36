"""Masked language modelling's loss and draw against unfused code, in one command: `python -m benchmarks.masked_lm`.

What: the op's tests first, and no number when one is red; then, for each size, forward and backward of the op, of the
same work unfused (logits whole, torch's cross-entropy, argmax, and a draw from the softmax in float64, 256 rows at a
time), and of public losses that have no draw (masked_lm_rivals.py; on a CPU those that run there, when they are
named), timed in turn in one process: medians, their ratio, and the memory of each beyond inputs, results and gradients.
A rival that fails, or whose loss is another one, has its error in the row and no number. Times on a CPU are the
process's own, which those of others do not add to.
One JSON line for each size goes to benchmarks/results/<device>/masked_lm.jsonl.
On a GPU the op runs as `triton` in bfloat16, on a CPU as `torch` in float32.
Tested by: tests/benchmarks/test_masked_lm.py.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.environment import describe_environment, device_name
from benchmarks.masked_lm_rivals import RIVALS, Rival
from benchmarks.ops import device_folder
from benchmarks.tests_first import own_tests_pass
from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, masked_lm_loss
from disentangled.trainer.allocated_bytes import AllocatedBytes

TESTS = ("tests/kernels/test_masked_lm_loss.py", "tests/kernels/test_masked_lm_draws.py")
GPU_TESTS = ("tests/kernels/test_triton_masked_lm_loss_gpu.py",)
RESULTS = Path(__file__).parent / "results"
# Masked tokens, ids, width: the tiny recipe's; a small step's; a base model's, whose unfused logits fit a GPU.
CPU_SIZES = ((154, 8192, 128), (400, 32_000, 256), (480, 128_100, 768))
GPU_SIZES = (
    (2400, 128_100, 768), (2400, 251_000, 768), (2400, 32_000, 768), (2400, 128_100, 1024), (600, 32_000, 256),
)  # fmt: skip
ROWS_AT_ONCE = 256
SAME_LOSS = 1e-2  # of the unfused loss: bfloat16's rounding, and what cut cross-entropy leaves out
LONGEST_ERROR = 200
Call = Callable[[], Tensor]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="benchmarks.masked_lm", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=read_sizes, metavar="MxVxD,...", help="masked tokens, ids, width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of torch on a CPU; as torch has them unless given")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    has_gpu = torch.cuda.is_available()
    parser.add_argument(
        "--rivals", type=lambda text: text.split(","), default=list(RIVALS) if has_gpu else [], metavar="NAME,...",
        help=f"losses without a draw, of {', '.join(RIVALS)}; all on a GPU, none on a CPU",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.rivals if name not in RIVALS]:
        parser.error(f"--rivals has {unknown[0]!r}: give some of {', '.join(RIVALS)}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if not own_tests_pass("-m", "not slow", *(GPU_TESTS if has_gpu else TESTS)):
        return 1
    folder = options.output or RESULTS / device_folder(device_name())
    folder.mkdir(parents=True, exist_ok=True)
    context = describe_environment(
        device_name(),
        ("torch", "triton", "liger-kernel", "cut-cross-entropy"),
        ["python", "-m", "benchmarks.masked_lm", *arguments],
    )
    for size in options.sizes or (GPU_SIZES if has_gpu else CPU_SIZES):
        row = context | {"threads": torch.get_num_threads()} | compare(*size, options.repeats, options.rivals)
        with (folder / "masked_lm.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(describe(row), flush=True)
    return 0


def read_sizes(text: str) -> tuple[tuple[int, ...], ...]:
    """ "2400x128100x768,..." as numbers."""
    return tuple(tuple(int(part) for part in size.split("x")) for size in text.split(","))


def compare(num_rows: int, num_ids: int, width: int, repeats: int, rivals: Sequence[str] = ()) -> dict[str, Any]:
    """All in turn, forward and backward: median milliseconds, and the peak of memory beyond what was there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with AllocatedBytes(device) as allocated:  # which counts nothing older than itself
        calls = make_calls(num_rows, num_ids, width, dtype, device, rivals)
        row: dict[str, Any] = {"num_rows": num_rows, "num_ids": num_ids, "width": width, "dtype": str(dtype)}
        unfused = float(calls["unfused"]())
        for name, call in list(calls.items()):
            try:
                loss = float(call())
                if not abs(loss - unfused) <= SAME_LOSS * unfused:
                    raise ArithmeticError(f"its loss is {loss}, unfused {unfused}")
                allocated.mark()
                call()
            # The one place for any Exception: whatever a rival raises is a result about that rival.
            except Exception as error:
                if name not in rivals:
                    raise
                row[f"{name}_error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
                del calls[name]
                continue
            row[f"{name}_extra_bytes"] = allocated.peak() - gradient_bytes(num_rows, num_ids, width, dtype)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            synchronize(device)
            started = clock()
            call()
            synchronize(device)
            times[name].append(1e3 * (clock() - started))
    return row | {f"{name}_milliseconds": statistics.median(values) for name, values in times.items()}


def make_calls(
    num_rows: int, num_ids: int, width: int, dtype: torch.dtype, device: torch.device, rivals: Sequence[str] = ()
) -> dict[str, Call]:
    """Forward and backward of each, on the same tensors; a call returns the loss. By name, rivals as in RIVALS."""
    torch.manual_seed(0)
    leaves = [
        x.to(device, dtype).requires_grad_()
        for x in (torch.randn(num_rows, width), torch.randn(num_ids, width) * 0.02, torch.zeros(num_ids))
    ]
    labels = torch.randint(num_ids, (num_rows,)).to(device)
    places = torch.arange(num_rows, device=device)
    draw = Draw(1, Stream.REPLACEMENT, places, places, torch.arange(num_ids, device=device) < 5)

    def fused() -> Tensor:
        loss = masked_lm_loss(*leaves, labels, draw).loss_sum
        torch.autograd.grad(loss, leaves)
        return loss.detach()

    def unfused() -> Tensor:
        logits = F.linear(*leaves).float()
        draw_from_all_logits(logits.detach(), draw)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        (logits.detach().argmax(-1) == labels).sum()
        torch.autograd.grad(loss, leaves)
        return loss.detach()

    def alone(rival: Rival) -> Tensor:
        if rival.version() is None:
            raise ModuleNotFoundError(f"{rival.package} is not installed")
        if rival.needs_gpu and device.type != "cuda":
            raise RuntimeError("it needs a GPU")
        loss = rival.loss(*leaves, labels)
        torch.autograd.grad(loss, leaves, allow_unused=True)  # cut cross-entropy has no bias
        return loss.detach()

    return {"fused": fused, "unfused": unfused} | {name: partial(alone, RIVALS[name]) for name in rivals}


def draw_from_all_logits(logits: Tensor, draw: Draw) -> Tensor:
    """A draw by one uniform number a row and the inverse of the whole distribution, in float64."""
    drawn = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    uniforms = draw.uniforms()[:, 0]
    for start in range(0, logits.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        scores = (logits[rows].nan_to_num().double() / draw.temperature).masked_fill(draw.banned, -torch.inf)
        cumulative = scores.softmax(-1).cumsum(-1)
        drawn[rows] = torch.searchsorted(cumulative, uniforms[rows, None] * cumulative[:, -1:], right=True).squeeze(1)
    return drawn


def gradient_bytes(num_rows: int, num_ids: int, width: int, dtype: torch.dtype) -> int:
    """Of the gradients that both make."""
    return (num_rows * width + num_ids * width + num_ids) * dtype.itemsize


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def describe(row: dict[str, Any]) -> str:
    """A row in a line, one for each rival, and whether the fastest of them is beaten."""
    ours, theirs = row["fused_milliseconds"], row["unfused_milliseconds"]
    extra = ", ".join(f"{name} {row[f'{name}_extra_bytes'] / 1e6:.0f} MB" for name in ("fused", "unfused"))
    lines = [
        f"{row['num_rows']} rows, {row['num_ids']} ids, width {row['width']}: fused {ours:.1f} ms, unfused "
        f"{theirs:.1f} ms, {theirs / ours:.2f}x; extra memory {extra}"
    ]
    timed = {}
    for name, rival in RIVALS.items():
        if f"{name}_error" in row:
            lines.append(f"  {rival.label}: {row[f'{name}_error']}")
        elif f"{name}_milliseconds" in row:
            timed[rival.label] = row[f"{name}_milliseconds"]
            memory = row[f"{name}_extra_bytes"] / 1e6
            lines.append(f"  {rival.label}, the loss alone: {timed[rival.label]:.1f} ms, {memory:.0f} MB")
    if timed:
        best = min(timed, key=lambda label: timed[label])
        said = "held" if ours <= timed[best] else "missed"
        lines.append(f"  {said}: fastest loss alone over loss and draw {timed[best] / ours:.2f} ({best}), goal 1.00")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
