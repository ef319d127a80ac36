"""Rows, and the timing of calls that take turns.

The machine's speed drifts, so only ratios within a repetition mean something: in every repetition each call runs once,
for at least SAMPLE_SECONDS, and a ratio is the median over the repetitions. Time is the process's own CPU time.

Used by: benchmarks/data/. Tested by: tests/benchmarks/test_data.py.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SAMPLE_SECONDS = 0.3
LONGEST_ERROR = 300

# does some work and returns how many tokens it was
Call = Callable[[], int]


class Absent(Exception):
    """A peer that is not here; the message says what is missing."""


@dataclass(frozen=True)
class Row:
    """One implementation in one case of one part: figures, or an error. Lists are repetitions."""

    part: str
    case: str
    implementation: str
    figures: dict[str, Any] = field(default_factory=dict)
    error: str | None = None


def measure_case(part: str, case: str, makers: dict[str, Callable[[], Call]], num_repeats: int) -> Iterator[Row]:
    """Rows of million tokens per CPU second; what cannot be made or fails is a row with its error."""
    calls = {}
    for name, make in makers.items():
        try:
            calls[name] = make()
            calls[name]()
        except ImportError as error:
            yield Row(part, case, name, error=f"absent: {error}")
            calls.pop(name, None)
        # a rival may raise whatever it likes; ours must not fail
        except Exception as error:
            if name.startswith("ours"):
                raise
            yield Row(part, case, name, error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR])
            calls.pop(name, None)
    for name, rates in cpu_rates(calls, num_repeats).items():
        yield Row(part, case, name, figures={"megatokens_per_cpu_second": [rate / 1e6 for rate in rates]})


def cpu_rates(calls: Mapping[str, Call], num_repeats: int) -> dict[str, list[float]]:
    """Tokens per second of CPU time in each repetition."""
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(num_repeats):
        for name, call in calls.items():
            rates[name].append(cpu_rate(call))
    return rates


def cpu_rate(call: Call) -> float:
    """Tokens per second of CPU time, over as many calls as it takes."""
    work, started, seconds = 0, time.process_time(), 0.0
    while seconds < SAMPLE_SECONDS:
        work += call()
        seconds = time.process_time() - started
    return work / seconds


def median_ratio(ours: Sequence[float], rival: Sequence[float]) -> float:
    """How many times as fast ours is, the median over the repetitions."""
    return statistics.median(a / b for a, b in zip(ours, rival, strict=True))
