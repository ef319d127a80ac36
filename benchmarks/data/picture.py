"""The picture of `benchmarks.data`: how many times as fast ours is as each peer, a bar each, a panel for each part.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py. Not here: the ratios (goals.py).
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from benchmarks.data.goals import Row, find_rows, ratio

# part, case, figure, title
PANELS = (
    ("prepare", "2 workers", "megabytes_per_second", "text to shards, 2 workers"),
    ("gather", "[64, 512]", "megatokens_per_cpu_second", "windows at random"),
    ("mask", "uniform", "megatokens_per_cpu_second", "masking, uniform"),
    ("mask", "whole word", "megatokens_per_cpu_second", "masking, whole words"),
    ("batches", "[64, 512]", "megatokens_per_cpu_second", "batches for MLM"),
)
PANEL_INCHES, BAR_INCHES, MARGIN_INCHES = 0.55, 0.22, 0.9
# Okabe and Ito's blue and vermilion: faster, slower
FASTER, SLOWER = "#0072B2", "#D55E00"


def draw_picture(rows: Sequence[Row], path: Path) -> bool:
    """Draw it; False, and no file, where there is no ratio."""
    found = find_rows(rows)
    panels = {}
    for part, case, key, title in PANELS:
        names = [row["implementation"] for row in rows if (row["part"], row["case"]) == (part, case)]
        bars = {name: times for name in names if not name.startswith("ours")
                if (times := ratio(found, part, case, name, key)) is not None}  # fmt: skip
        if bars:
            panels[title] = bars
    if not panels:
        return False
    matplotlib.use("Agg")
    heights = [PANEL_INCHES + BAR_INCHES * len(bars) for bars in panels.values()]
    figure = Figure(figsize=(7, sum(heights) + MARGIN_INCHES), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights).flatten()
    for axis, (title, bars) in zip(axes, panels.items(), strict=True):
        colors = [FASTER if times >= 1 else SLOWER for times in bars.values()]
        drawn = axis.barh(list(bars), [times - 1 for times in bars.values()], left=1, color=colors)
        axis.bar_label(drawn, [f" {times:.2g}x" if times < 10 else f" {times:.0f}x" for times in bars.values()])
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_xscale("log")
        axis.axvline(1, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.margins(x=0.12)
    axes[-1].set_xlabel("how many times as fast ours is")
    dates = sorted({row["date"] for row in rows})
    figure.suptitle(f"{rows[0]['device']}, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}", fontsize=10)
    figure.savefig(path, dpi=150)
    return True
