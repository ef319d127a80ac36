"""The rows as a page of Markdown: goals first, then a table for each part, then what failed or was absent.

A rate is shown as a multiple: how many times as fast ours is. "ours" itself shows 1.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py. Not here: the picture (picture.py).
"""

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.data.goals import Row, Verdict, find_rows, judge_goals, ratio, shown

RATES = ("megabytes_per_second", "megabytes_per_cpu_second", "megatokens_per_cpu_second")
TITLES = {
    "prepare": "Raw text to token files",
    "gather": "Windows of 512 tokens at random",
    "mask": "Masking",
    "pack": "Rows of 512 tokens",
    "batches": "Whole batches ready for MLM",
    "start": "To the first batch far into a run",
    "order": "Order of samples",
    "integrity": "Damaged files",
}
NAMES = {
    "megabytes_per_second": "ours / it, wall",
    "megabytes_per_cpu_second": "ours / it, CPU",
    "megatokens_per_cpu_second": "ours / it, CPU",
    "peak_process_bytes": "largest process, MB",
    "text_bytes": "text, MB",
    "grown_bytes": "memory grown, MB",
    "seconds": "s, wall",
    "cpu_seconds": "s, CPU",
}
HOLDS = {True: "yes", False: "**no**", None: "-"}


def read_rows(path: Path) -> list[Row]:
    """The newest row of each kind."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return list(find_rows(rows).values())


def write_report(rows: Sequence[Row], path: Path) -> None:
    path.write_text("\n".join(report_lines(rows)) + "\n", encoding="utf-8")


def report_lines(rows: Sequence[Row]) -> Iterator[str]:
    """The page."""
    yield "# The data path against its peers"
    yield ""
    yield from head_lines(rows)
    yield ""
    yield "## Goals"
    yield ""
    yield from goal_lines(judge_goals(rows))
    found = find_rows(rows)
    for part, title in TITLES.items():
        cases = dict.fromkeys(row["case"] for row in rows if row["part"] == part and row["error"] is None)
        if cases:
            yield ""
            yield f"## {title}"
        if part == "integrity":
            yield ""
            yield from integrity_lines([row for row in rows if row["part"] == part and row["error"] is None])
            continue
        for case in cases:
            chosen = [row for row in rows if (row["part"], row["case"]) == (part, case) and row["error"] is None]
            yield ""
            yield f"{case}:"
            yield ""
            yield from case_lines(chosen, found)
    yield from failure_lines(rows)


def head_lines(rows: Sequence[Row]) -> Iterator[str]:
    """What was run, where, with what."""
    yield f"{rows[0]['device']}. Medians over repetitions that took turns. Others use the machine too, so only ratios"
    yield "mean something: bare times and rates are in data.jsonl, and are no promise."
    yield ""
    for run in dict.fromkeys((row["date"], row["command"]) for row in rows):
        yield f"- {run[0]}: `{run[1]}`"
    versions = {name: version for row in rows for name, version in row["versions"].items() if version}
    yield "- versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())
    for row in rows:
        if row["part"] == "text":
            facts = row["figures"]
            yield (
                f"- text of {row['case'].replace(',', ', ')}: {facts['source']}; "
                f"timed on {facts['num_bytes'] / 1e6:.1f} MB in {facts['num_documents']:,} "
                f"documents, the long text is {facts['long_bytes'] / 1e6:.1f} MB; {facts['num_pieces']:,} pieces"
            )


def goal_lines(verdicts: Iterable[Verdict]) -> Iterator[str]:
    yield "| goal | wanted | measured | reached |"
    yield "|---|---|---|---|"
    for verdict in verdicts:
        yield f"| {verdict.goal} | {verdict.wanted} | {verdict.measured} | {HOLDS[verdict.holds]} |"


def case_lines(rows: Sequence[Row], found: dict[tuple[str, str, str], Row]) -> Iterator[str]:
    """A table of one case; the columns are all figures that some row has."""
    keys = list(dict.fromkeys(key for row in rows for key in row["figures"]))
    yield "| | " + " | ".join(NAMES.get(key, key.replace("_", " ")) for key in keys) + " |"
    yield "|---" * (len(keys) + 1) + "|"
    for row in rows:
        cells = [cell(row, key, found) for key in keys]
        yield f"| {row['implementation']} | " + " | ".join(cells) + " |"


def cell(row: Row, key: str, found: dict[tuple[str, str, str], Row]) -> str:
    """A rate as a multiple, bytes as MB, of lists the median."""
    value = row["figures"].get(key)
    if value is None:
        return ""
    if key in RATES:
        times = ratio(found, row["part"], row["case"], row["implementation"], key)
        return "" if times is None else f"{times:.2f}" if times < 10 else f"{times:.0f}"
    if isinstance(value, list):
        value = statistics.median(value)
    if isinstance(value, bool | str):
        return str(value)
    if key.endswith("_bytes"):
        return f"{value / 1e6:,.0f}"
    if key.endswith("_share"):
        return f"{100 * value:.2f} %"
    return f"{value:,}" if isinstance(value, int) else shown(value, "")


def integrity_lines(rows: Sequence[Row]) -> Iterator[str]:
    """Implementations down, damages across."""
    damages = list(dict.fromkeys(row["case"] for row in rows))
    yield "| | " + " | ".join(damages) + " |"
    yield "|---" * (len(damages) + 1) + "|"
    verdicts: dict[str, dict[str, Any]] = {}
    for row in rows:
        verdicts.setdefault(row["implementation"], {})[row["case"]] = row["figures"]["verdict"]
    for name, given in verdicts.items():
        yield f"| {name} | " + " | ".join(given.get(damage, "") for damage in damages) + " |"


def failure_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A line for everything that is not in the tables."""
    failed: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["error"] is not None:
            failed.setdefault((row["implementation"], row["error"]), []).append(f"{row['part']} ({row['case']})")
    if failed:
        yield ""
        yield "## Absent or failed"
        yield ""
    for (name, error), places in failed.items():
        yield f"- {name}, {', '.join(places)}: {error}"
