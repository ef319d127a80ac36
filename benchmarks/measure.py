"""One row of a benchmark: errors, times, memory and rates of one implementation on one problem.

Times on a GPU are triton.testing.do_bench's, which empties the L2 cache before each run; on a CPU they are wall clock.
"forward" keeps what backward needs, as in training; "backward" repeats on one forward's graph; "forward_backward" is
one after the other. Gradients are returned and not added to older ones.

Memory is the peak of forward and backward together beyond what was there before and beyond outputs and gradients.

Used by: benchmarks/ops.py. Not here: what is called (rivals.py), how many operations it takes (attention_problem.py).
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_problem import REFERENCE_HEADS, TABLE_ROWS, Problem, checked_part, count_flops
from benchmarks.rivals import Prepared
from tests.kernels.attention_case import NAMES

QUANTILES = (0.5, 0.2, 0.8)
WARMUP_MILLISECONDS = 25
SAMPLE_MILLISECONDS = 150
FEWEST_SAMPLES = 3  # on a CPU, however long one takes
PASSES = ("forward", "backward", "forward_backward")


def measure(problem: Problem, prepared: Prepared, exact: dict[str, Tensor] | None) -> dict[str, Any]:
    """The figures of a row; the first call compiles, and a result that is not finite is an error."""
    with_positions = len(prepared.leaves) > 3
    row: dict[str, Any] = {"relative_errors": None}
    errors = relative_errors(problem, prepared, exact) if with_positions else None
    row["relative_errors"] = errors
    row["extra_memory_bytes"] = extra_memory_bytes(problem, prepared)
    flops = count_flops(problem.lengths, problem.setting.heads, with_positions)
    for name, pass_flops in zip(PASSES, (*flops, sum(flops)), strict=True):
        times = milliseconds(one_pass(name, problem, prepared), problem.query.device)
        row |= {f"{name}_{key}_milliseconds": value for key, value in zip(("median", "p20", "p80"), times, strict=True)}
        row[f"{name}_tflops"] = pass_flops / (times[0] * 1e9)
    return row


def one_pass(name: str, problem: Problem, prepared: Prepared) -> Callable[[], Any]:
    """A function that runs the pass once."""
    leaves, grad_output = prepared.leaves, problem.grad_output
    if name == "forward":
        return prepared.forward
    if name == "backward":
        output = prepared.forward()
        return lambda: torch.autograd.grad(output, leaves, grad_output, retain_graph=True)
    return lambda: torch.autograd.grad(prepared.forward(), leaves, grad_output)


def milliseconds(call: Callable[[], Any], device: torch.device) -> tuple[float, ...]:
    """Median, 20th and 80th percentile."""
    if device.type == "cuda":
        from triton.testing import do_bench

        times = do_bench(call, warmup=WARMUP_MILLISECONDS, rep=SAMPLE_MILLISECONDS, quantiles=list(QUANTILES))
        return tuple(float(value) for value in times)
    call()
    samples: list[float] = []
    while len(samples) < FEWEST_SAMPLES or sum(samples) < SAMPLE_MILLISECONDS:
        started = time.perf_counter()
        call()
        samples.append(1e3 * (time.perf_counter() - started))
    quintiles = statistics.quantiles(samples, n=5, method="inclusive")
    return statistics.median(samples), quintiles[0], quintiles[-1]


def extra_memory_bytes(problem: Problem, prepared: Prepared) -> int | None:
    """Peak of one forward and backward beyond inputs, output and gradients; None on a CPU."""
    if problem.query.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = prepared.forward()
    grads = torch.autograd.grad(output, prepared.leaves, problem.grad_output)
    torch.cuda.synchronize()
    results = sum(x.numel() * x.element_size() for x in (output, *grads))
    return max(0, torch.cuda.max_memory_allocated() - before - results)


def relative_errors(problem: Problem, prepared: Prepared, exact: dict[str, Tensor] | None) -> dict[str, float] | None:
    """Relative L2 error of output and gradients on the checked document; None where there is nothing to compare with.

    It runs the implementation in any case, so that whatever is not finite is found.
    """
    document = problem.documents[problem.checked_document]
    grad_output = torch.zeros_like(problem.grad_output)
    grad_output.flatten(0, -3)[document] = problem.grad_output.flatten(0, -3)[document]
    output = prepared.forward()
    grads = torch.autograd.grad(output, prepared.leaves, grad_output)
    parts = [checked_part(x.detach(), document) for x in (output, *grads[:3])]
    for grad in grads[3:]:
        table = grad.new_zeros(grad.shape[0], TABLE_ROWS, grad.shape[2])
        rows = slice(None) if prepared.table_rows is None else prepared.table_rows
        table[:, rows] = grad[:, : table[:, rows].shape[1]]
        parts.append(table[:REFERENCE_HEADS])
    found = dict(zip(NAMES, parts, strict=True))
    for name, part in found.items():
        if not part.isfinite().all():
            raise ArithmeticError(f"{name} is not finite")
    if exact is None:
        return None
    return {name: float((part.double() - exact[name]).norm() / exact[name].norm()) for name, part in found.items()}
