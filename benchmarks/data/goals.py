"""What is wanted of the data path, D1 to D13, and whether the rows show it.

Bounds on ratios hold against the peers that were measured in the same run; bare rates of a machine are no goals here.

Used by: benchmarks/data/report.py. Tested by: tests/benchmarks/test_data.py.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.data.integrity import DAMAGES
from benchmarks.data.rounds import median_ratio

Row = dict[str, Any]
# (part, case, implementation)
Rows = Mapping[tuple[str, str, str], Row]
MEGABYTE = 1e6


@dataclass(frozen=True)
class Verdict:
    """A line of the table; holds is None where nothing was measured."""

    goal: str
    wanted: str
    measured: str
    holds: bool | None


def find_rows(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """The newest row of each kind."""
    return {(row["part"], row["case"], row["implementation"]): row for row in rows}


def figure(rows: Rows, part: str, case: str, name: str, key: str) -> Any:
    """A figure; None where there is no such row, or it failed."""
    return rows.get((part, case, name), {}).get("figures", {}).get(key)


def ratio(rows: Rows, part: str, case: str, rival: str, key: str, ours: str = "ours") -> float | None:
    """How many times a rival's figure ours is, the median over repetitions; None where one of the two is missing."""
    ours_row, rival_row = rows.get((part, case, ours)), rows.get((part, case, rival))
    if ours_row is None or rival_row is None or ours_row["run"] != rival_row["run"]:
        return None
    values = [row.get("figures", {}).get(key) for row in (ours_row, rival_row)]
    return None if None in values else median_ratio(*values)


@dataclass(frozen=True)
class RatioGoal:
    """At least so many times each rival's figure; the ratio of another figure can be shown beside it."""

    goal: str
    what: str
    part: str
    case: str
    key: str
    bounds: Mapping[str, float]
    beside: str | None = None
    beside_what: str = ""

    def judge(self, rows: Rows) -> Iterator[Verdict]:
        for rival, bound in self.bounds.items():
            found = ratio(rows, self.part, self.case, rival, self.key)
            wanted = f"{self.what}: >= {bound:g}x {rival}"
            measured = shown(found, "x")
            if self.beside and (beside := ratio(rows, self.part, self.case, rival, self.beside)) is not None:
                measured += f" ({shown(beside, 'x')} {self.beside_what})"
            yield Verdict(self.goal, wanted, measured, None if found is None else found >= bound)


@dataclass(frozen=True)
class BoundGoal:
    """A figure of ours below or above a bound; of several repetitions, the worst."""

    goal: str
    wanted: str
    part: str
    case: str
    key: str
    bound: float
    at_least: bool = False
    scale: float = 1.0
    unit: str = ""

    def judge(self, rows: Rows) -> Iterator[Verdict]:
        found = figure(rows, self.part, self.case, "ours", self.key)
        if isinstance(found, list):
            found = min(found) if self.at_least else max(found)
        holds = None if found is None else (found >= self.bound if self.at_least else found <= self.bound)
        yield Verdict(self.goal, self.wanted, shown(found, self.unit, self.scale), holds)


@dataclass(frozen=True)
class RuleGoal:
    """Anything else."""

    goal: str
    wanted: str
    find: Callable[[Rows], tuple[str, bool] | None]

    def judge(self, rows: Rows) -> Iterator[Verdict]:
        found = self.find(rows)
        yield Verdict(self.goal, self.wanted, *(found or ("not measured", None)))


def shown(value: float | None, unit: str, scale: float = 1.0) -> str:
    """Three digits."""
    if value is None:
        return "not measured"
    return f"{float(f'{value / scale:.3g}'):,}".removesuffix(".0") + unit


def judge_scaling(rows: Rows) -> tuple[str, bool] | None:
    one, two = (figure(rows, "prepare", f"{n} workers", "ours", "megabytes_per_second") for n in (1, 2))
    if one is None or two is None:
        return None
    found = median_ratio(two, one)
    return shown(found, "x"), found >= 1.8


def judge_same_bytes(rows: Rows) -> tuple[str, bool] | None:
    row = rows.get(("prepare", "same bytes", "ours"))
    if row is None:
        return None
    facts = row["figures"]
    equal = facts["two_workers_equal"] and facts["killed_equal"]
    when = "at work" if facts["was_killed_at_work"] else "too late, it had ended"
    return f"{'equal' if equal else 'different'} ({facts['num_shards']} shards; killed {when})", equal


def judge_damages(rows: Rows) -> tuple[str, bool] | None:
    verdicts = {damage: figure(rows, "integrity", damage, "ours", "verdict") for damage in DAMAGES if damage != "whole"}
    if None in verdicts.values():
        return None
    missed = [damage for damage, verdict in verdicts.items() if not verdict.endswith(", named")]
    return (f"missed: {', '.join(missed)}" if missed else "all four, by name"), not missed


def judge_same_batches(rows: Rows) -> tuple[str, bool] | None:
    facts = rows.get(("order", "same batches", "ours"), {}).get("figures")
    if not facts:
        return None
    return f"{facts['num_equal']} of {facts['num_ways']} ways equal", facts["num_equal"] == facts["num_ways"]


PREPARE = {"megatron": 3.0, "datatrove": 8.0, "datasets": 7.0, "litdata": 1.5, "mds": 1.0}
TOKENS_RATE = "megatokens_per_cpu_second"
SHAPE = "[64, 512]"
GOALS: Sequence[RatioGoal | BoundGoal | RuleGoal] = (
    RatioGoal(
        "D1", "text to shards, 2 workers", "prepare", "2 workers", "megabytes_per_second", PREPARE,
        "megabytes_per_cpu_second", "by CPU time",
    ),
    RatioGoal(
        "D2", "per core, long text", "prepare", "default range, long text", "megabytes_per_cpu_second", {"bare": 0.9}
    ),
    RuleGoal("D2", "2 workers: >= 1.8x 1 worker", judge_scaling),
    RuleGoal("D3", "same bytes for 1 process, 2 workers, killed and resumed", judge_same_bytes),
    BoundGoal("D4", "<= 2.05 bytes a token", "prepare", "2 workers", "bytes_per_token", 2.05),
    BoundGoal(
        "D4", "<= 3.05 bytes a token in 24 bits", "prepare", "default range, ids in 24 bits", "bytes_per_token", 3.05
    ),
    BoundGoal("D4", "plan of rows <= 0.06 bytes a token", "pack", "documents", "plan_bytes_per_token", 0.06),
    RatioGoal(
        "D5", "windows at random", "gather", SHAPE, TOKENS_RATE,
        {"megatron": 20.0, "litdata": 5.0, "mds": 15.0, "datasets": 15.0},
    ),
    RatioGoal("D6", "batches for MLM", "batches", SHAPE, TOKENS_RATE, {"modernbert": 10.0, "datasets": 25.0}),
    RatioGoal("D7", "masking whole words", "mask", "whole word", TOKENS_RATE, {"deberta": 50.0, "megatron": 300.0}),
    BoundGoal("D8", ">= 99.0 % real tokens", "pack", "documents", "real_share", 0.99, True, 0.01, " %"),
    BoundGoal("D8", "no avoidable cut", "pack", "lines", "avoidable_cuts_share", 0.0, False, 0.01, " %"),
    BoundGoal("D9", "first batch at 1.5e9: < 1 s", "start", "open and first batch", "seconds", 1.0, False, 1.0, " s"),
    BoundGoal(
        "D9", "first batch at 1.5e9: < 50 MB more", "start", "open and first batch", "grown_bytes", 50 * MEGABYTE,
        False, MEGABYTE, " MB",
    ),
    RuleGoal("D10", "truncated, flipped, missing, foreign: reported by name", judge_damages),
    RuleGoal("D11", "same global batch for ranks x accumulation x workers", judge_same_batches),
    BoundGoal("D12", "mixture off by <= 1e-4 in 65,536 samples", "order", "mixture", "largest_error", 1e-4),
    BoundGoal(
        "D13", "<= 500 MB a worker at the default range", "prepare", "default range, long text", "peak_process_bytes",
        500 * MEGABYTE, False, MEGABYTE, " MB",
    ),
)  # fmt: skip


def judge_goals(rows: Iterable[Row]) -> list[Verdict]:
    """Every goal against the rows."""
    found = find_rows(rows)
    return [verdict for goal in GOALS for verdict in goal.judge(found)]
