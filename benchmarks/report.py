"""What the rows of `benchmarks.ops` say: a picture of the speed-ups, and a table with the goals.

Speed-up, share of the ceiling and memory compare forward and backward together. "Best library" is the fastest of the
libraries at that length; "never slower" counts transformers and FlexAttention too.

Used by: benchmarks/ops.py. Tested by: tests/benchmarks/test_ops.py.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.rivals import IMPLEMENTATIONS, OURS

Row = dict[str, Any]
PANEL = ("heads", "dtype", "case", "total_tokens")
KEY = ("device", "implementation", "length_tokens", *PANEL)
MEDIAN = "forward_backward_median_milliseconds"
MEMORY = "extra_memory_bytes"


@dataclass(frozen=True)
class Goal:
    """What is wanted at a length, on an H200 in bf16."""

    length_tokens: int
    speed_up: float
    ceiling_share: float


GOALS = (Goal(512, 3.0, 0.40), Goal(4096, 4.0, 0.60))
MEMORY_SHARE = 0.25
GOAL_DEVICE, GOAL_DTYPE = "H200", "bf16"


def read_rows(path: Path) -> list[Row]:
    """The newest row of each implementation and setting in a file of rows."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return list({tuple(row[name] for name in KEY): row for row in rows}.values())


def panels(rows: Iterable[Row]) -> dict[tuple[Any, ...], dict[int, dict[str, Row]]]:
    """Rows that have times: by panel, then length, then implementation; all ascending, in the order of the rows."""
    found: dict[tuple[Any, ...], dict[int, dict[str, Row]]] = {}
    for row in rows:
        if MEDIAN in row:
            lengths = found.setdefault(tuple(row[name] for name in PANEL), {})
            lengths.setdefault(row["length_tokens"], {})[row["implementation"]] = row
    return {panel: dict(sorted(lengths.items())) for panel, lengths in found.items()}


def panel_title(panel: tuple[Any, ...]) -> str:
    heads, dtype, case, total_tokens = panel
    return f"{heads} heads, {dtype}, {case}, {total_tokens:,} tokens"


def our_name(rows: Iterable[Row]) -> str | None:
    """The implementation of ours that is compared: the kernels where they ran, else plain torch, else none."""
    timed = {row["implementation"] for row in rows if MEDIAN in row}
    return next((name for name in OURS if name in timed), None)


def speed_ups(lengths: dict[int, dict[str, Row]], ours: str) -> dict[str, list[tuple[int, float]]]:
    """For each rival: length and how many times our time it takes."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name in IMPLEMENTATIONS:
        points = [
            (length, timed[name][MEDIAN] / timed[ours][MEDIAN])
            for length, timed in lengths.items()
            if name not in OURS and name in timed and ours in timed
        ]
        if points:
            found[name] = points
    return found


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The table, a block for each panel, and the rows that failed. Goals hold against the rivals that were timed."""
    ours = our_name(rows)
    if ours is None:
        yield "no implementation of ours was timed, so there is nothing to compare"
    else:
        for panel, lengths in panels(rows).items():
            yield ""
            yield f"{panel_title(panel)}: forward and backward, {IMPLEMENTATIONS[ours].label}"
            yield (
                f"{'N':>6}{'ours ms':>10}{'best library ms':>18}{'':29}{'speed-up':>9}{'% of SDPA':>11}"
                f"{'memory':>8}  goals"
            )
            for length, timed in lengths.items():
                if ours in timed:
                    yield _table_line(length, timed, ours)
    failures: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if "error" in row:
            failures.setdefault((row["implementation"], row["error"]), []).append(row)
    if failures:
        yield ""
        yield "failed, with the first of the rows:"
    for (name, error), failed in failures.items():
        where = f"N={failed[0]['length_tokens']}, {panel_title(tuple(failed[0][key] for key in PANEL))}"
        yield f"  {name}, {len(failed)} rows, {where}: {error}"


def _table_line(length: int, timed: dict[str, Row], ours: str) -> str:
    milliseconds = timed[ours][MEDIAN]
    best = best_library(timed)
    library, speed_up = f"{'-':>18}{'':29}", None
    if best is not None:
        speed_up = best[MEDIAN] / milliseconds
        library = f"{best[MEDIAN]:>18.3f} {IMPLEMENTATIONS[best['implementation']].label:<28}"
    return (
        f"{length:>6}{milliseconds:>10.3f}{library}{_shown(speed_up, 9, '.2f')}"
        f"{_shown(ceiling_share(timed, ours), 11, '.0%')}{_shown(memory_ratio(timed, ours), 8, '.2f')}"
        f"  {verdict(length, timed, ours)}"
    )


def _shown(value: float | None, width: int, form: str) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}{form}}"


def best_library(timed: dict[str, Row]) -> Row | None:
    """The library with the shortest forward and backward."""
    libraries = [row for name, row in timed.items() if IMPLEMENTATIONS[name].is_library]
    return min(libraries, key=lambda row: row[MEDIAN], default=None)


def ceiling_share(timed: dict[str, Row], ours: str) -> float | None:
    """The time of attention without positions as a share of ours."""
    return timed["sdpa"][MEDIAN] / timed[ours][MEDIAN] if "sdpa" in timed else None


def memory_ratio(timed: dict[str, Row], ours: str) -> float | None:
    """Our extra memory as a share of the best library's; None where one was not measured, or the library has none."""
    best = best_library(timed)
    if best is None or timed[ours][MEMORY] is None or not best[MEMORY]:
        return None
    return timed[ours][MEMORY] / best[MEMORY]


def verdict(length: int, timed: dict[str, Row], ours: str) -> str:
    """Whether the goals hold at this length: "held", or what is missed or not known."""
    row = timed[ours]
    if GOAL_DEVICE not in row["device"] or row["dtype"] != GOAL_DTYPE:
        return "not for this device or dtype"
    best = best_library(timed)
    speed_up = None if best is None else best[MEDIAN] / row[MEDIAN]
    rivals = [row[MEDIAN] for name, row in timed.items() if name not in (*OURS, "sdpa")]
    slowest_share = min(rivals) / row[MEDIAN] if rivals else None
    ratio = memory_ratio(timed, ours)
    checks = [
        ("never slower", slowest_share, None if slowest_share is None else slowest_share >= 1),
        (f"memory <= {MEMORY_SHARE}", ratio, None if ratio is None else ratio <= MEMORY_SHARE),
    ]
    share = ceiling_share(timed, ours)
    for goal in GOALS:
        if goal.length_tokens == length:
            wanted = goal.speed_up
            checks.append((f">= {wanted:g}x", speed_up, None if speed_up is None else speed_up >= wanted))
            wanted = goal.ceiling_share
            checks.append((f">= {wanted:.0%} of SDPA", share, None if share is None else share >= wanted))
    missed = [f"{name}: {value:.2f}" for name, value, holds in checks if holds is False]
    unknown = [name for name, _, holds in checks if holds is None]
    texts = (["missed " + ", ".join(missed)] if missed else []) + (["unknown " + ", ".join(unknown)] if unknown else [])
    return "; ".join(texts) or "held"
