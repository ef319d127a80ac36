"""What the rows of `benchmarks.step` say: tables with the goals, and a picture of where a step's time goes.

Ratios are of one run: how many times ours' time a variant takes, the median over the rounds. On a CPU with one thread
they are of CPU time, which the work of others does not add to; else of the wall clock.
Used by: benchmarks/step.py. Tested by: tests/benchmarks/test_step.py.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.step_breakdown import PARTS
from benchmarks.step_encoders import ENCODERS
from benchmarks.step_variants import VARIANTS

Row = dict[str, Any]
GROUP = (
    "device", "kind", "recipe", "precision", "width", "layers", "vocabulary", "dropout", "rows", "tokens",
    "micro_batches",
)  # fmt: skip
KEY = (*GROUP, "variant", "case", "threads")
CPU_GOAL, GPU_EAGER_GOAL, GPU_FLASH_GOAL, MFU_GOAL, MEMORY_GOAL, MIXED_GOAL = 1.6, 3.0, 1.5, 0.45, 0.5, 0.95
# Okabe and Ito's colours, told apart by the colour-blind too; what is left over is grey.
COLORS = dict(zip(PARTS, ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#BBBBBB"), strict=True))


def read_rows(path: Path) -> list[Row]:
    """The newest row of each kind in a file of rows."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return list({str([row.get(name) for name in KEY]): row for row in rows}.values())


def groups(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Rows of one size and precision, in their order."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(str([row[name] for name in GROUP]), []).append(row)
    yield from found.values()


def clock_of(row: Row) -> str:
    """The clock whose ratios are read."""
    return "cpu" if row["threads"] == 1 and row["mfu"] is None and "NVIDIA" not in row["device"] else "wall"


def best_rows(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """By variant and case: of several numbers of threads the fastest."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row["variant"], row["case"]
        if "error" not in row and (key not in best or _seconds(row) < _seconds(best[key])):
            best[key] = row
    return best


def _seconds(row: Row) -> float:
    return float(row[f"{clock_of(row)}_seconds"])


def ratio(slow: Row | None, fast: Row | None) -> float | None:
    """How many times the time of `fast`: of one round each where both had as many threads."""
    if slow is None or fast is None:
        return None
    clock = clock_of(fast) if clock_of(fast) == clock_of(slow) else "wall"
    if slow["threads"] == fast["threads"] and f"{clock}_ratio" in slow and fast[f"{clock}_ratio"] == 1.0:
        return float(slow[f"{clock}_ratio"])
    return float(slow[f"{clock}_seconds"] / fast[f"{clock}_seconds"])


def table_lines(rows: Sequence[Row]) -> Iterator[str]:
    """A table for each size and precision."""
    for group in groups(rows):
        first, labels = group[0], ENCODERS | {name: variant.label for name, variant in VARIANTS.items()}
        if first["kind"] == "encoder":
            labels = ENCODERS
        yield ""
        yield (
            f"{first['kind']}, {first['recipe']} ({first['layers'][0]} and {first['layers'][1]} layers of "
            f"{first['width']}, {first['vocabulary']:,} ids, {first['micro_batches']} x {first['rows']} x "
            f"{first['tokens']} tokens, dropout {first['dropout']}), {first['precision']}, {first['device']}"
        )
        yield (
            f"{'variant':<30}{'case':<7}{'threads':>7}{'ms':>9}{'CPU ms':>9}{'tokens/s':>10}{'TFLOP/s':>9}{'MFU':>6}"
            f"{'peak MB':>9}{'x ours':>8}"
        )
        best = best_rows(group)
        ours = next((row for row in best.values() if row["variant"].startswith("ours")), None)
        for row in group:
            label = f"{labels[row['variant']]:<30}{row['case']:<7}"
            if "error" in row:
                yield label + row["error"]
                continue
            yield (
                f"{label}{row['threads']:>7}{1e3 * row['wall_seconds']:>9.1f}{1e3 * row['cpu_seconds']:>9.1f}"
                f"{row['tokens_per_second']:>10.0f}{_shown(row['achieved_tflops'], 9, '.3f')}"
                f"{_shown(row['mfu'], 6, '.0%')}{_shown(row['peak_bytes'], 9, '.0f', 1e-6)}"
                f"{_shown(ratio(row, ours), 8, '.2f')}"
            )
        for row in group:
            if "parts_seconds" in row:
                parts = ", ".join(f"{name} {1e3 * spent:.1f}" for name, spent in row["parts_seconds"].items())
                yield f"  {labels[row['variant']]}, {row['case']}, ms: {parts}"
        yield from goal_lines(first["kind"], best)


def goal_lines(kind: str, best: dict[tuple[str, str], Row]) -> Iterator[str]:
    """Each goal that these rows can tell of: held, or missed and by how much."""
    ours = min(
        (row for (name, case), row in best.items() if name.startswith("ours") and case == "fixed"),
        key=_seconds,
        default=None,
    )
    if ours is None:
        return
    on_gpu = "NVIDIA" in ours["device"]
    eager, compiled = best.get(("transformers", "fixed")), best.get(("transformers_compiled", "fixed"))
    rivals = [row for row in (eager, compiled) if row is not None]
    checks: list[tuple[str, float | None, float]] = []
    if kind == "encoder":
        if on_gpu:
            checks.append(("speed of ModernBERT", ratio(best.get(("modernbert", "fixed")), ours), 1.0))
    elif on_gpu:
        checks.append(("speed of transformers eager", ratio(eager, ours), GPU_EAGER_GOAL))
        checks.append(
            ("speed of DisentangledFlash", ratio(best.get(("disentangled_flash", "fixed")), ours), GPU_FLASH_GOAL)
        )
        checks.append(("MFU", ours["mfu"], MFU_GOAL))
        if eager is not None and eager["peak_bytes"]:
            checks.append(
                ("memory of transformers, over ours", eager["peak_bytes"] / ours["peak_bytes"], 1 / MEMORY_GOAL)
            )
    elif rivals:
        checks.append(("speed of transformers' best", min(ratio(row, ours) or 0.0 for row in rivals), CPU_GOAL))
    mixed = best.get((ours["variant"], "mixed"))
    if mixed is not None:
        rate = "tokens_per_cpu_second" if clock_of(ours) == "cpu" else "tokens_per_second"
        checks.append(("mixed lengths, live tokens/s over fixed", mixed[rate] / ours[rate], MIXED_GOAL))
    for name, value, wanted in checks:
        if value is None:
            yield f"  unknown: {name}, goal {wanted:.2f}"
        else:
            yield f"  {'held' if value >= wanted else 'missed'}: {name} {value:.2f}, goal {wanted:.2f}"


def draw_picture(rows: Sequence[Row], path: Path) -> bool:
    """Bars of a step's parts, a panel for each size and precision; False, and no file, where no row has parts."""
    panels = [[row for row in group if "parts_seconds" in row] for group in groups(rows)]
    panels = [panel for panel in panels if panel]
    if not panels:
        return False
    matplotlib.use("Agg")
    figure = Figure(figsize=(8.0, sum(1.0 + 0.34 * len(panel) for panel in panels) + 0.8), layout="constrained")
    heights = [1.0 + 0.34 * len(panel) for panel in panels]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).flatten()
    for axis, panel in zip(axes, panels, strict=True):
        first = panel[0]
        axis.set_title(f"{first['recipe']}, width {first['width']}, {first['precision']}", fontsize=10, loc="left")
        labels = [f"{VARIANTS[row['variant']].label}, {row['case']}" for row in panel]
        places, left = list(range(len(panel)))[::-1], [0.0] * len(panel)
        for part in PARTS:
            widths = [1e3 * row["parts_seconds"][part] for row in panel]
            axis.barh(places, widths, left=left, color=COLORS[part], label=part)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axis.set_yticks(places, labels)
        axis.set_xlabel("ms of a step" + ("" if "NVIDIA" in first["device"] else ", CPU time"))
        axis.grid(axis="x", alpha=0.3, linewidth=0.6)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(PARTS), frameon=False)
    figure.suptitle(f"Where a step's time goes\n{panels[0][0]['device']}, {panels[0][0]['date']}", fontsize=11)
    figure.savefig(path, dpi=130)
    return True


def _shown(value: float | None, width: int, form: str, scale: float = 1.0) -> str:
    return f"{'-':>{width}}" if value is None else f"{value * scale:>{width}{form}}"
