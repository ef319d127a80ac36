"""The picture of `benchmarks.ops`: how much faster ours is than each rival, against the length.

Used by: benchmarks/ops.py. Tested by: tests/benchmarks/test_ops.py. Not here: the figures (report.py).
"""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.report import Row, our_name, panel_title, panels, speed_ups
from benchmarks.rivals import IMPLEMENTATIONS

# Okabe and Ito's colours, told apart by the colour-blind too; SDPA is grey, as it is a ceiling and no rival.
LOOKS = {
    "disentangled_flash": ("#0072B2", "o", "-"),
    "disentangled_flash_autotuned": ("#56B4E9", "s", "-"),
    "flashdeberta": ("#D55E00", "^", "-"),
    "eager": ("#009E73", "D", "-"),
    "flex": ("#CC79A7", "v", "-"),
    "sdpa": ("#777777", "x", "--"),
}
MOST_COLUMNS = 3


def draw_picture(rows: Sequence[Row], path: Path) -> bool:
    """Draw a panel for each heads, dtype and case; False, and no file, where ours or every rival was not timed."""
    ours = our_name(rows)
    curves = {} if ours is None else {panel: speed_ups(lengths, ours) for panel, lengths in panels(rows).items()}
    curves = {panel: found for panel, found in curves.items() if found}
    if ours is None or not curves:
        return False
    matplotlib.use("Agg")
    columns = min(MOST_COLUMNS, len(curves))
    num_rows = -(-len(curves) // columns)
    figure = Figure(figsize=(max(6.4, 4.2 * columns), 3.3 * num_rows + 1.3), layout="constrained")
    axes = figure.subplots(num_rows, columns, squeeze=False, sharey=True).flatten()
    for panel, axis in zip(curves, axes, strict=False):
        axis.set_title(panel_title(panel), fontsize=10)
        axis.axhline(1, color="black", linewidth=0.8)
        for name, points in curves[panel].items():
            color, marker, line = LOOKS[name]
            axis.plot(
                *zip(*points, strict=True),
                color=color, marker=marker, linestyle=line, markersize=5, label=IMPLEMENTATIONS[name].label,
            )  # fmt: skip
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.xaxis.set_major_locator(FixedLocator(sorted({n for points in curves[panel].values() for n, _ in points})))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axis.grid(alpha=0.3, linewidth=0.6)
        axis.set_xlabel("N, tokens")
    for axis in axes[len(curves) :]:
        axis.remove()
    for axis in axes[: len(curves) : columns]:
        axis.set_ylabel("speed-up: rival's time / ours")
    # one octave on each side of 1 at least, or a narrow range would have no tick
    bottom, top = axes[0].get_ylim()
    axes[0].set_ylim(min(bottom, 0.45), max(top, 2.2))
    found = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    legend = {label: found[label] for name in LOOKS if (label := IMPLEMENTATIONS[name].label) in found}
    figure.legend(legend.values(), legend, loc="outside lower center", ncols=2 if columns == 1 else 3, frameon=False)
    first = rows[0]
    figure.suptitle(
        f"Forward and backward against {IMPLEMENTATIONS[ours].label}; above 1x ours is faster\n"
        f"{first['device']}, head width {first['head_width']}, {first['date']}",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
    return True
