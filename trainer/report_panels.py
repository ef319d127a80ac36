"""The pictures of a run's report, as SVG that takes its colours from the page.

What: one small picture a question, so that they stand side by side on a desk and below each other on a phone. They are
drawn in stand-in colours that become CSS variables, so one picture serves a light and a dark page. A curve that has
very many points keeps the lowest and the highest of each stretch: no spike is lost.
Used by: trainer/report.py. Tested by tests/trainer/test_report_panels.py.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from disentangled.trainer.events import Event

Row = dict[str, float]

# what stands in for each colour while it is drawn; nothing else has these
COLORS = {name: f"#0{number}0{number}0{number}" for number, name in enumerate(
    ("ink", "grid", "generator", "discriminator", "held-out", "fault"), 1
)}  # fmt: skip
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the same run gives the same bytes
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": COLORS["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    **{f"{part}.color": COLORS["ink"] for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}color": COLORS["ink"] for part in ("label", "edge")},
}
CALM_KINDS = ("start", "resume", "save", "stop", "done")  # every other event is a fault
MOST_POINTS = 800
SECONDS_OF_UNIT = {"minutes": 60, "hours": 3600, "days": 86400}


@dataclass(frozen=True)
class Curve:
    """One key over the step; `held_out` is the key of its points from evaluations."""

    key: str
    label: str
    color: str
    held_out: str = ""


@dataclass(frozen=True)
class Panel:
    """A picture; a curve that is nowhere, or 0 everywhere, is left out, and so is a picture without curves."""

    title: str
    unit: str
    curves: tuple[Curve, ...]
    guessing: float | None = None
    is_logarithmic: bool = False
    starts_at_zero: bool = False
    factor: float = 1.0


PANELS = (
    Panel("Generator: MLM loss", "nats per masked token",
          (Curve("mlm_loss", "training", "generator", "validation_mlm_loss"),)),
    Panel("Discriminator: RTD loss", "nats per token",
          (Curve("rtd_loss", "training", "discriminator", "validation_rtd_loss"),)),
    Panel("Discriminator: replaced or original?", "0.5 is guessing",
          (Curve("rtd_auc", "AUC", "discriminator", "validation_rtd_auc"),
           Curve("rtd_balanced_accuracy", "balanced accuracy", "generator")), guessing=0.5),
    Panel("Replaced tokens", "% of all tokens", (Curve("replaced_fraction", "replaced", "discriminator"),),
          starts_at_zero=True, factor=100),
    Panel("Gradient norms before clipping", "",
          (Curve("generator_gradient_norm", "generator", "generator"),
           Curve("discriminator_gradient_norm", "discriminator", "discriminator")), is_logarithmic=True),
    Panel("||E_Delta|| / ||E_G||", "", (Curve("delta_ratio", "ratio", "discriminator"),), starts_at_zero=True),
    Panel("Average cosine of word embeddings", "all pairs of the sample",
          (Curve("E_G_cosine", "E_G", "generator"), Curve("E_D_cosine", "E_D", "discriminator"),
           Curve("E_Delta_cosine", "E_Delta", "held-out"))),
    Panel("Fine-tuned on small tasks", "each task's first metric",
          (Curve("probe_sst2", "SST-2", "generator"), Curve("probe_cola", "CoLA", "discriminator"),
           Curve("probe_stsb", "STS-B", "held-out"))),
    Panel("Learning rates", "",
          (Curve("generator_learning_rate", "generator", "generator"),
           Curve("discriminator_learning_rate", "discriminator", "discriminator")), starts_at_zero=True),
    Panel("Throughput", "tokens/s", (Curve("tokens_per_second", "all ranks", "generator"),), starts_at_zero=True),
    Panel("Model FLOP/s utilization", "% of the devices' peak",
          (Curve("model_flops_utilization", "MFU", "generator"),), starts_at_zero=True, factor=100),
    Panel("Seconds of a step", "s",
          (Curve("seconds_per_step", "whole step", "generator"),
           Curve("data_wait_seconds", "waiting for data", "discriminator")), starts_at_zero=True),
    Panel("Memory of the fullest rank", "GiB",
          (Curve("device_memory_bytes", "device, most so far", "generator"),
           Curve("process_memory_bytes", "process", "discriminator")), starts_at_zero=True, factor=2.0**-30),
    Panel("Skipped updates", "so far",
          (Curve("generator_skipped_steps", "generator", "generator"),
           Curve("discriminator_skipped_steps", "discriminator", "discriminator")), starts_at_zero=True),
)  # fmt: skip


def draw_panels(
    training: Sequence[Row], held_out: Sequence[Row], events: Sequence[Event], unigram: float | None = None
) -> list[tuple[str, str]]:
    """(title, SVG) of each panel that has something to show. unigram: nats, drawn with the MLM loss."""
    drawn = []
    for panel in PANELS:
        curves = [curve for curve in panel.curves if any(row.get(curve.key) for row in training)]
        if curves:
            drawn.append((panel.title, draw_panel(panel, curves, training, held_out, events, unigram)))
    return drawn


def draw_panel(
    panel: Panel,
    curves: Sequence[Curve],
    training: Sequence[Row],
    held_out: Sequence[Row],
    events: Sequence[Event],
    unigram: float | None,
) -> str:
    """One panel over the step, faults and restarts marked."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5, 2.9), layout="constrained")
        for curve in curves:
            steps, values = values_of(training, curve.key)
            steps, values = thin_out(steps, values * panel.factor)
            marker = "o" if steps.size == 1 else ""
            color = COLORS[curve.color]
            axes.plot(steps, values, color=color, label=curve.label, linewidth=1.4, marker=marker, markersize=3)
            steps, values = values_of(held_out, curve.held_out)
            if steps.size:
                label = "held out" if len(curves) == 1 else f"{curve.label}, held out"
                axes.plot(steps, values * panel.factor, "o", color=COLORS["held-out"], markersize=4, label=label)
        if unigram is not None and curves[0].key == "mlm_loss":
            axes.axhline(unigram, color=COLORS["ink"], linestyle=":", linewidth=1, label="by frequency alone")
        if panel.guessing is not None:
            axes.axhline(panel.guessing, color=COLORS["ink"], linestyle=":", linewidth=1)
        if panel.is_logarithmic:
            axes.set_yscale("log")
        if panel.starts_at_zero:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
        mark_events(axes, events)
        axes.set(xlabel="step", ylabel=panel.unit)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if panel.unit == "tokens/s":
            axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend()
        return to_svg(figure, panel.title)


def mark_events(axes: Axes, events: Sequence[Event]) -> None:
    """A dashed line where the run went on after a stop, a full one where there was a fault."""
    for event in events:
        if event["kind"] == "resume":
            axes.axvline(event["step"], color=COLORS["ink"], linestyle="--", linewidth=0.8, alpha=0.6)
        elif event["kind"] not in CALM_KINDS:
            axes.axvline(event["step"], color=COLORS["fault"], linewidth=0.8, alpha=0.6)


def draw_time_line(training: Sequence[Row], events: Sequence[Event]) -> str | None:
    """The step over wall-clock time, with every start, checkpoint, stop and fault; None where no times are known."""
    points = sorted(
        [(row["time"], row["step"], "") for row in training if "time" in row]
        + [(event["time"], event["step"], event["kind"]) for event in events]
    )
    if not points:
        return None
    first = points[0][0]
    span = points[-1][0] - first
    unit = next((name for name, seconds in reversed(SECONDS_OF_UNIT.items()) if span >= 2 * seconds), "minutes")
    stretches: list[list[tuple[float, float]]] = []
    for time, step, kind in points:
        if kind in ("start", "resume") or not stretches:
            stretches.append([])
        stretches[-1].append(((time - first) / SECONDS_OF_UNIT[unit], step))
    marks = {"checkpoint": ("|", "ink"), "start or resume": (">", "generator"), "stop": ("s", "ink"),
             "fault": ("X", "fault")}  # fmt: skip
    with matplotlib.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(13, 3), layout="constrained")
        for stretch in stretches:
            times, steps = thin_out(*np.asarray(stretch, dtype=float).T)
            axes.plot(times, steps, color=COLORS["generator"], linewidth=1.4)
        for name, (marker, color) in marks.items():
            chosen = [((time - first) / SECONDS_OF_UNIT[unit], step) for time, step, kind in points
                      if kind and mark_of(kind) == name]  # fmt: skip
            if chosen:
                axes.plot(*zip(*chosen, strict=True), marker, color=COLORS[color], markersize=6, label=name)
        axes.set(xlabel=f"{unit} since the start", ylabel="step", ylim=(0, None))
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
        return to_svg(figure, "Steps over time")


def mark_of(kind: str) -> str:
    """Under which mark of the time line a kind of event is shown."""
    calm = {"start": "start or resume", "resume": "start or resume", "save": "checkpoint", "stop": "stop",
            "done": "stop"}  # fmt: skip
    return calm.get(kind, "fault")


def values_of(rows: Sequence[Row], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps and values of the rows that have the key."""
    found = [(row["step"], row[key]) for row in rows if key in row]
    steps, values = np.asarray(found, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def thin_out(
    steps: NDArray[np.float64], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most MOST_POINTS of the points: of each stretch the first, its lowest and its highest, and the last point."""
    if steps.size <= MOST_POINTS:
        return steps, values
    chosen = {steps.size - 1}
    for stretch in np.array_split(np.arange(steps.size), MOST_POINTS // 3 - 1):
        finite = np.where(np.isfinite(values[stretch]), values[stretch], values[stretch][0])
        chosen |= {int(stretch[0]), int(stretch[finite.argmin()]), int(stretch[finite.argmax()])}
    kept = np.array(sorted(chosen))
    return steps[kept], values[kept]


def to_svg(figure: Figure, title: str) -> str:
    """The figure as an <svg> element that fills its place, in the page's colours."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    svg = buffer.getvalue()[buffer.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[^"]*pt"| height="[^"]*pt"', "", svg, count=2)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    # several pictures share a page: their inner names must not meet
    prefix = re.sub(r"\W+", "-", title).strip("-").lower()
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1).strip()
