"""What the runs of experiments/embedding_sharing.py came to: one table, one picture, one file of rows.

What: values at each run's last step, per way of sharing the mean over seeds with the smallest and the largest; the
picture has each seed as a thin line and their mean as a thick one. Whatever is not there yet is left empty.
Used by: experiments/embedding_sharing.py. Tested by tests/experiments/test_sharing_page.py.
Not here: how any of it is measured.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from disentangled.trainer.metric_log import METRICS_FILE, read_rows
from disentangled.trainer.run_folder import COSINE_FILE
from experiments.gradient_conflict import CONFLICT_FILE
from experiments.sharing_runs import Run

PAGE, PICTURE, ROWS = "sharing.md", "sharing.png", "sharing.jsonl"
# Okabe and Ito's colours, told apart by the colour-blind too
COLORS = {"es": "#D55E00", "nes": "#009E73", "gdes": "#0072B2", "mlm": "#777777"}
NAMES = {
    "validation_mlm_loss": "MLM loss, held out, nats",
    "validation_rtd_auc": "RTD AUC, held out",
    "E_G_cosine": "cosine within E_G",
    "E_D_cosine": "cosine within E_D",
    "E_Delta_cosine": "cosine within E_Delta",
    "cosine": "cosine of the two gradients over E",
    "rtd_to_mlm_norm": "their norms, RTD / MLM",
}
CURVES = ("validation_mlm_loss", "validation_rtd_auc", "E_D_cosine", "cosine")

Curve = dict[int, float]


def write_page(output: Path, runs: Sequence[Run], total_steps: int, scores: Path, head: Mapping[str, Any]) -> Path:
    """Write the three files from what lies in the runs' folders.

    Args:
        scores: rows of finetune/probe.py with runs' folders as labels; may be absent.
        head: device, versions, date and command (benchmarks/environment.py).
    """
    curves = {run: read_curves(run) for run in runs}
    rows = [summarize(run, curves[run], total_steps) for run in runs if curves[run]]
    tasks = read_rows(scores)
    for row in rows:
        row |= {
            str(score["task"]): score["mean"] for score in tasks if score["label"] == f"{row['variant']}_{row['seed']}"
        }
    (output / ROWS).write_text("".join(json.dumps({**head, **row}) + "\n" for row in rows), encoding="utf-8")
    draw(curves, output / PICTURE)
    untrained = {str(score["task"]): score["mean"] for score in tasks if score["label"] == "from scratch"}
    versions = ", ".join(f"{name} {version}" for name, version in head["versions"].items())
    lines = [
        "# Ways of sharing embeddings",
        "",
        f"{head['device']}, {versions}, {head['date']}.",
        f"{total_steps:,} steps a run; means over seeds, with the smallest and the largest. Rows: {ROWS}.",
        "",
        f"    {head['command']}",
        "",
        *table_lines(rows, untrained, total_steps),
        "",
        "mlm is one model, as deep as the others' discriminators: its MLM loss is not comparable with theirs.",
        "",
        f"![curves]({PICTURE})",
    ]
    (output / PAGE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return output / PAGE


def read_curves(run: Run) -> dict[str, Curve]:
    """What was measured of a run, by name and step."""
    curves: dict[str, Curve] = {}
    for name in (METRICS_FILE, COSINE_FILE, CONFLICT_FILE):
        for row in read_rows(run.folder / name):
            for key in NAMES.keys() & row.keys():
                curves.setdefault(key, {})[int(row["step"])] = row[key]
    return curves


def summarize(run: Run, curves: Mapping[str, Curve], total_steps: int) -> dict[str, Any]:
    """A run's values at the last step of each curve that reaches the end, and how far it is."""
    step = max(max(curve) for curve in curves.values())
    ends = {name: curve[total_steps] for name, curve in curves.items() if total_steps in curve}
    return {"variant": run.variant, "seed": run.seed, "step": step, **ends}


def table_lines(rows: Sequence[Mapping[str, Any]], untrained: Mapping[str, float], total_steps: int) -> Iterator[str]:
    """A way a row; runs that have not reached the end are counted and left out."""
    tasks = list(dict.fromkeys(key for row in rows for key in row if key not in {"variant", "seed", "step", *NAMES}))
    yield "| | " + " | ".join(["seeds", *NAMES.values(), *tasks]) + " |"
    yield "|---" * (len(NAMES) + len(tasks) + 2) + "|"
    if untrained:
        yield (
            f"| random weights | |{' |' * len(NAMES)} "
            + " | ".join(f"{untrained.get(task, 0):.3f}" for task in tasks)
            + " |"
        )
    for variant in COLORS:
        found = [row for row in rows if row["variant"] == variant]
        ended = [row for row in found if row["step"] >= total_steps]
        if not found:
            continue
        seeds = str(len(ended)) + (f" ({len(found) - len(ended)} under way)" if len(ended) < len(found) else "")
        yield f"| {variant} | {seeds} | " + " | ".join(spread(ended, name) for name in [*NAMES, *tasks]) + " |"


def spread(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    """A cell: the mean, and the range where there are several."""
    values = [row[name] for row in rows if name in row]
    if not values:
        return ""
    between = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{fmean(values):.3f}{between}"


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Their mean at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: fmean(curve[step] for curve in curves) for step in steps}


def draw(curves: Mapping[Run, Mapping[str, Curve]], path: Path) -> None:
    """A panel for each of CURVES."""
    matplotlib.use("Agg")
    figure = Figure(figsize=(11, 7), layout="constrained")
    for name, axis in zip(CURVES, figure.subplots(2, 2).flatten(), strict=True):
        draw_panel(axis, name, curves)
    lines = {text: line for axis in figure.axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    shown = [variant for variant in COLORS if variant in lines]
    figure.legend([lines[name] for name in shown], shown, loc="outside lower center", ncols=len(COLORS), frameon=False)
    figure.savefig(path, dpi=120)


def draw_panel(axis: Axes, name: str, curves: Mapping[Run, Mapping[str, Curve]]) -> None:
    """One value against the step."""
    axis.set_title(NAMES[name], fontsize=10)
    for variant, color in COLORS.items():
        found = [curve[name] for run, curve in curves.items() if run.variant == variant and curve.get(name)]
        for curve in found:
            axis.plot(list(curve), list(curve.values()), color=color, linewidth=0.7, alpha=0.5)
        if found:
            mean = mean_curve(found)
            axis.plot(list(mean), list(mean.values()), color=color, linewidth=2, marker=".", label=variant)
    if name == "cosine":
        axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xlabel("step")
    axis.grid(alpha=0.3, linewidth=0.6)
