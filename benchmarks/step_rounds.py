"""The rounds of `benchmarks.step`: what agrees takes turns, and each gets a row.

What: a contestant is built, compared and, if it agrees, timed: all of them once in every round, so that each round has
a ratio, and a figure is the median over the rounds. One that disagrees with the error rule (tests/numerics.py), or
fails, has its error for a row and no times.
Used by: benchmarks/step.py. Tested by: tests/benchmarks/test_step.py.
Not here: what is built (step_variants.py, step_encoders.py), what rows say (step_report.py).
"""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.ops import LONGEST_ERROR
from benchmarks.step_breakdown import PARTS, watch_functions
from disentangled.trainer.allocated_bytes import AllocatedBytes
from tests.numerics import assert_no_worse_than_eager

Row = dict[str, Any]
CLOCKS = ("wall", "cpu")
WARM_UP = 2
MEMORY_STEPS = 2  # in the second one the optimizer's moments are there
PARTS_STEPS = 3


@dataclass(frozen=True)
class Contestant:
    """One that takes turns.

    Attributes:
        build: makes something with `run(step)`, and `clock` where has_parts.
        check: raises where what was built disagrees.
        counts_memory: whether its memory can be seen; on a CPU a compiled model's cannot.
    """

    name: str
    case: str
    build: Callable[[], Any]
    check: Callable[[Any], None]
    has_parts: bool
    counts_memory: bool


def check_answer(found: dict[str, Tensor], eager: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    """Hold an answer to the error rule."""
    for name, value in found.items():
        assert_no_worse_than_eager(value, eager[name], exact[name], name)


def time_contestants(
    contestants: Sequence[Contestant], rounds: int, threads: Sequence[int], device: torch.device, deadline: float
) -> list[Row]:
    """A row for each contestant and number of threads; the first of all is what ratios are of."""
    built: dict[int, Any] = {}
    peaks: dict[int, int | None] = {}
    failed: dict[int, str] = {}
    for number, contestant in enumerate(contestants):
        try:
            before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
            peaks[number] = None if device.type == "cuda" else peak_bytes(contestant, device)
            built[number] = contestant.build()
            contestant.check(built[number])
            for step in range(WARM_UP):
                built[number].run(step)
            if device.type == "cuda":  # its allocator counts what is there, so nothing need be built for it
                torch.cuda.reset_peak_memory_stats()
                built[number].run(WARM_UP)
                peaks[number] = torch.cuda.max_memory_allocated() - before
        # A rival may raise anything, on any machine: that is a result about it, and the others are still wanted.
        except Exception as error:
            built.pop(number, None)
            failed[number] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
            print(f"{contestant.name}, {contestant.case}: {failed[number]}", flush=True)
    seconds: dict[tuple[int, int], list[tuple[float, float]]] = {key: [] for key in itertools.product(built, threads)}
    own_threads = torch.get_num_threads()
    for count in range(rounds):
        if time.monotonic() > deadline and count:
            print(f"no time was left after {count} of {rounds} rounds", flush=True)
            break
        for (number, num_threads), spent in seconds.items():
            torch.set_num_threads(num_threads)
            spent.append(time_step(built[number], WARM_UP + count, device))
    torch.set_num_threads(max(threads))
    parts = {number: read_parts(built[number], rounds) for number in built if contestants[number].has_parts}
    torch.set_num_threads(own_threads)
    rows = []
    for number, contestant in enumerate(contestants):
        head: Row = {"variant": contestant.name, "case": contestant.case}
        if number in failed:
            rows.append(head | {"error": failed[number]})
            continue
        for num_threads in threads:
            row = head | {"threads": num_threads, "rounds": count_rounds(seconds), "peak_bytes": peaks[number]}
            row |= figures(seconds[number, num_threads], seconds.get((0, num_threads)))
            rows.append(row | ({"parts_seconds": parts[number]} if number in parts else {}))
    return rows


def count_rounds(seconds: dict[tuple[int, int], list[tuple[float, float]]]) -> int:
    """How many there were."""
    return min((len(spent) for spent in seconds.values()), default=0)


def time_step(step: Any, number: int, device: torch.device) -> tuple[float, float]:
    """Wall clock and CPU time of one step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, cpu_started = time.perf_counter(), time.process_time()
    step.run(number)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, time.process_time() - cpu_started


def figures(own: Sequence[tuple[float, float]], first: Sequence[tuple[float, float]] | None) -> Row:
    """Medians over the rounds, and how many times the first contestant's time it takes, by both clocks."""
    row: Row = {}
    for index, clock in enumerate(CLOCKS):
        row[f"{clock}_seconds"] = statistics.median(spent[index] for spent in own)
        if first is not None:
            ratios = [spent[index] / of_first[index] for spent, of_first in zip(own, first, strict=True)]
            row[f"{clock}_ratio"] = statistics.median(ratios)
            row[f"{clock}_ratio_range"] = [min(ratios), max(ratios)]
    return row


def peak_bytes(contestant: Contestant, device: torch.device) -> int | None:
    """On a CPU, the most that it holds in its second step: weights, gradients, moments and activations."""
    if not contestant.counts_memory:
        return None
    with AllocatedBytes(device) as allocated:  # it counts what is made inside
        step = contestant.build()
        for number in range(MEMORY_STEPS):
            step.run(number)
        peak = allocated.peak()
    del step
    return peak


def read_parts(step: Any, first_step: int) -> dict[str, float]:
    """Seconds of each part of a step: medians over some steps."""
    found = []
    with watch_functions(step.clock):
        for number in range(PARTS_STEPS):
            step.clock.start()
            step.run(WARM_UP + first_step + number)
            found.append(step.clock.seconds())
    return {name: statistics.median(spent[name] for spent in found) for name in PARTS}
