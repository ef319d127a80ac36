"""One page about a run: curves and the numbers that matter.

What: reads metrics.jsonl and run.json of a run folder and writes report.html with its picture inside (MLM loss, RTD
loss and AUC, learning rates, tokens/s), so that it can be mailed or opened anywhere. A run that is still going can be
reported on.
Used by: `python -m disentangled.trainer.report --run DIR`, trainer/demo.py. Tested by tests/trainer/test_report.py.
"""

import argparse
import base64
import html
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from disentangled.trainer.metrics import read_rows
from disentangled.trainer.run_folder import RUN_FILE

REPORT_FILE = "report.html"
GENERATOR_COLOR, DISCRIMINATOR_COLOR, HELD_OUT_COLOR = "#1b6ca8", "#c8553d", "#222222"

Row = dict[str, float]


def write_report(run_dir: Path, unigram_cross_entropy_nats: float | None = None) -> Path:
    """Write RUN/report.html from the rows logged so far.

    Raises:
        ValueError: the folder holds no run, or nothing was logged yet.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise ValueError(f"{run_dir} holds no run ({RUN_FILE} is missing): give the run.dir of a training run")
    rows = read_rows(run_dir / "metrics.jsonl")
    training = [row for row in rows if "mlm_loss" in row]
    held_out = [row for row in rows if "validation_mlm_loss" in row]
    if not training:
        raise ValueError(f"{run_dir / 'metrics.jsonl'} holds no step yet: wait for the first log line")
    config = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["config"]
    picture = draw_curves(training, held_out, unigram_cross_entropy_nats)
    page = _page(run_dir.resolve().name, picture, training, held_out, config)
    path = run_dir / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def draw_curves(training: list[Row], held_out: list[Row], unigram: float | None) -> bytes:
    """A PNG with four panels over the step."""
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    loss, rtd, rate, speed = panels.flat
    _curve(loss, training, "mlm_loss", "training", GENERATOR_COLOR)
    _points(loss, held_out, "validation_mlm_loss")
    if unigram is not None:
        loss.axhline(unigram, color="grey", linestyle="--", linewidth=1, label="unigram (held out)")
    loss.set(title="Generator: MLM loss", ylabel="nats per masked token")
    _curve(rtd, training, "rtd_loss", "loss", DISCRIMINATOR_COLOR)
    rtd.set(title="Discriminator: RTD loss and AUC", ylabel="loss, nats per token")
    area = rtd.twinx()
    _curve(area, training, "rtd_auc", "AUC", GENERATOR_COLOR)
    _points(area, held_out, "validation_rtd_auc")
    area.set_ylabel("AUC")
    area.set_ylim(0.45, 1.0)
    rtd.legend(*_merged_legend(rtd, area), frameon=False, loc="upper center")
    _curve(rate, training, "generator_learning_rate", "generator", GENERATOR_COLOR)
    _curve(rate, training, "discriminator_learning_rate", "discriminator", DISCRIMINATOR_COLOR)
    rate.set(title="Learning rate", ylim=(0, None))
    _curve(speed, training, "tokens_per_second", "", HELD_OUT_COLOR)
    speed.set(title="Tokens per second", ylim=(0, None))
    for panel in (loss, rate):
        panel.legend(frameon=False)
    for panel in panels.flat:
        panel.set_xlabel("step")
        panel.spines["top"].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return buffer.getvalue()


def _curve(panel: Axes, rows: list[Row], name: str, label: str, color: str) -> None:
    rows = [row for row in rows if name in row]  # a generator that trains alone reports no discriminator
    panel.plot([row["step"] for row in rows], [row[name] for row in rows], color=color, label=label, linewidth=1.6)


def _points(panel: Axes, rows: list[Row], name: str) -> None:
    steps = [row["step"] for row in rows]
    panel.plot(steps, [row[name] for row in rows], "o", color=HELD_OUT_COLOR, markersize=5, label=_held_out_label(name))


def _held_out_label(name: str) -> str:
    return "AUC, held out" if name.endswith("auc") else "held out"


def _merged_legend(*panels: Axes) -> tuple[list[object], list[str]]:
    handles: list[object] = []
    labels: list[str] = []
    for panel in panels:
        own_handles, own_labels = panel.get_legend_handles_labels()
        handles += own_handles
        labels += own_labels
    return handles, labels


def _page(name: str, picture: bytes, training: list[Row], held_out: list[Row], config: dict[str, object]) -> str:
    last = {**training[-1], **(held_out[-1] if held_out else {})}
    last["step"] = max(row["step"] for row in training + held_out)
    numbers = "\n".join(f"<tr><td>{html.escape(key)}</td><td>{value:.6g}</td></tr>" for key, value in last.items())
    image = base64.b64encode(picture).decode("ascii")
    settings = html.escape(json.dumps(config, indent=1))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(name)}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; }}
td {{ padding: .15rem .8rem .15rem 0; border-bottom: 1px solid #ddd; }}
td + td {{ text-align: right; font-variant-numeric: tabular-nums; }}
pre {{ overflow-x: auto; background: #f6f6f6; padding: 1rem; }}
</style></head><body>
<h1>{html.escape(name)}</h1>
<img alt="training curves" src="data:image/png;base64,{image}">
<h2>Last values</h2>
<table>{numbers}</table>
<h2>Configuration</h2>
<pre>{settings}</pre>
</body></html>
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="disentangled.trainer.report", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path, help="run.dir of a training run")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {write_report(options.run)}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
