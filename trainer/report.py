"""One page about a run, finished or under way: is it well, how far is it, what happened.

What: reads run.json, metrics.jsonl and events.jsonl of a run folder, and embedding_cosine.jsonl and probe.jsonl where
somebody had those measured, and writes report.html, which holds everything it shows (no scripts, nothing from
elsewhere), follows the reader's light or dark setting and fits a phone.
Used by: `python -m disentangled.trainer.report --run DIR`, trainer/demo.py. Tested by tests/trainer/test_report.py.
Not here: the pictures (report_panels.py), the judgement (verdict.py); checkpoints are not read.
"""

import argparse
import html
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from disentangled.trainer.command_line import print_error
from disentangled.trainer.events import Event, read_events
from disentangled.trainer.metric_log import METRICS_FILE, clock, read_rows, scale
from disentangled.trainer.report_panels import Row, draw_panels, draw_time_line, mark_of
from disentangled.trainer.run_folder import COSINE_FILE, PROBE_FILE, RUN_FILE
from disentangled.trainer.verdict import judge_discriminator

REPORT_FILE = "report.html"
MOST_EVENTS = 200  # shown in the table, the newest
SILENT_LINES, SILENT_SECONDS = 5, 120  # without a line for so long a run is not called under way
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f5f6f8; --ink: #20242a; --grid: #dfe3e8; --quiet: #5c6570;
  --generator: #1b6ca8; --discriminator: #c8553d; --held-out: #20242a; --fault: #d11f3f; --good: #1e7d44;
  --weak: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1e2228; --ink: #e4e7eb; --grid: #343b44;
  --quiet: #9aa4b0; --generator: #63b0e8; --discriminator: #f08a70; --held-out: #f3f4f6; --fault: #ff6b81;
  --good: #5fcf8d; --weak: #e0b04a; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 1rem; color: var(--ink);
  background: var(--paper); }
h1 { margin: 0; font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
p { margin: .3rem 0; }
.verdict { border-left: .3rem solid var(--quiet); background: var(--card); padding: .6rem .9rem; margin: 1rem 0; }
.good { border-color: var(--good); } .weak { border-color: var(--weak); }
.collapsed, .broken { border-color: var(--fault); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .6rem; }
.tiles div { background: var(--card); padding: .5rem .8rem; border-radius: .3rem; }
.tiles span { display: block; color: var(--quiet); font-size: .8rem; }
.tiles b { font-size: 1.2rem; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure { margin: 0; background: var(--card); border-radius: .3rem; padding: .6rem; }
figcaption { font-weight: 600; font-size: .95rem; }
svg { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; } .wide svg { min-width: 50rem; }
table { border-collapse: collapse; font-size: .9rem; }
td { padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.fault td { color: var(--fault); }
pre { overflow-x: auto; background: var(--card); padding: 1rem; font-size: .85rem; }
summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; margin: 1.5rem 0 .5rem; }
"""


def write_report(run_dir: Path, unigram_cross_entropy_nats: float | None = None) -> Path:
    """Write RUN/report.html from what was logged so far.

    Raises:
        ValueError: the folder holds no run, or nothing was logged yet.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise ValueError(f"{run_dir} holds no run ({RUN_FILE} is missing): give the run.dir of a training run")
    rows = read_rows(run_dir / METRICS_FILE)
    training = [row for row in rows if "mlm_loss" in row]
    held_out = [row for row in rows if "validation_mlm_loss" in row]
    if not training:
        raise ValueError(f"{run_dir / METRICS_FILE} holds no step yet: wait for the first log line")
    measured = [row for name in (COSINE_FILE, PROBE_FILE) for row in read_rows(run_dir / name)]
    config = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["config"]
    events = read_events(run_dir)
    verdict = judge_discriminator(training, config["schedule"]["warmup_steps"])
    time_line = draw_time_line(training, events)
    panels = "\n".join(
        f"<figure><figcaption>{html.escape(title)}</figcaption>{svg}</figure>"
        for title, svg in draw_panels([*training, *measured], held_out, events, unigram_cross_entropy_nats)
    )
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(run_dir.resolve().name)}</title><style>{STYLE}</style></head><body>
<h1>{html.escape(run_dir.resolve().name)}</h1>
<p>{html.escape(describe_state(training, events, config["schedule"]["total_steps"], time.time()))}</p>
<p class="verdict {verdict.kind}">{html.escape(verdict.text)}</p>
<div class="tiles">{make_tiles(training, held_out, events)}</div>
<h2>Steps over time</h2>
{f'<figure class="wide">{time_line}</figure>' if time_line else "<p>No times were logged.</p>"}
<h2>Over the steps</h2>
<p>Dashed: the run went on after a stop. Red: a fault.</p>
<div class="panels">{panels}</div>
<h2>What happened</h2>
{make_event_table(events)}
<details><summary>Last values</summary><table>{make_value_table(training, held_out)}</table></details>
<details><summary>Configuration</summary><pre>{html.escape(json.dumps(config, indent=1))}</pre></details>
</body></html>
"""
    path = run_dir / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path


def describe_state(training: Sequence[Row], events: Sequence[Event], total_steps: int, now: float) -> str:
    """How far the run is and whether it goes on, in a sentence or two; now: unix seconds."""
    last = training[-1]
    step = max([int(last["step"]), *(int(event["step"]) for event in events[-1:])])
    where = f"Step {step:,} of {total_steps:,}"
    ending = events[-1]["kind"] if events else ""
    if ending == "done" or step >= total_steps:
        return f"{where}: done."
    if ending == "stop":
        return f"{where}: stopped, {events[-1]['text']}. The same command goes on."
    if "time" not in last:
        return f"{where}."
    age = max(0.0, now - max([last["time"], *(event["time"] for event in events[-1:])]))
    lines = [row["time"] for row in training[-2:]]
    if age > max(SILENT_SECONDS, SILENT_LINES * (lines[-1] - lines[0])):
        return f"{where}: nothing was written for {clock(age)}, so it was killed or is stuck. The same command goes on."
    return f"{where}: under way, about {clock(last['remaining_seconds'])} left; last written {clock(age)} ago."


def make_tiles(training: Sequence[Row], held_out: Sequence[Row], events: Sequence[Event]) -> str:
    """The numbers that one looks for first."""
    last = {**training[-1], **(held_out[-1] if held_out else {})}
    faults = sum(mark_of(event["kind"]) == "fault" for event in events)
    tiles = [
        ("MLM loss, training", f"{training[-1]['mlm_loss']:.3f}"),
        ("MLM loss, held out", _format(last.get("validation_mlm_loss"), ".3f")),
        ("RTD AUC, training", _format(training[-1].get("rtd_auc"), ".3f")),
        ("RTD AUC, held out", _format(last.get("validation_rtd_auc"), ".3f")),
        ("tokens/s", scale(training[-1]["tokens_per_second"])),
        ("MFU", _format(last.get("model_flops_utilization"), ".1%")),
        ("restarts", str(sum(event["kind"] == "resume" for event in events)) if events else ""),
        ("faults", str(faults) if events else ""),
    ]
    return "".join(f"<div><span>{name}</span><b>{value}</b></div>" for name, value in tiles if value)


def _format(value: float | None, form: str) -> str:
    return "" if value is None else f"{value:{form}}"


def make_event_table(events: Sequence[Event]) -> str:
    """The newest events, newest first."""
    if not events:
        return "<p>No events were logged.</p>"
    lines = []
    for event in reversed(events[-MOST_EVENTS:]):
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(event["time"]))
        cells = (f'<td class="number">{when}</td><td class="number">{event["step"]:,}</td>'
                 f"<td>{html.escape(event['kind'])}</td><td>{html.escape(event['text'])}</td>")  # fmt: skip
        lines.append(f'<tr class="{mark_of(event["kind"]).split()[0]}">{cells}</tr>')
    older = len(events) - MOST_EVENTS
    more = f"<p>and {older:,} older ones in events.jsonl</p>" if older > 0 else ""
    return f'<div class="wide"><table>{"".join(lines)}</table></div><p>Times are UTC.</p>{more}'


def make_value_table(training: Sequence[Row], held_out: Sequence[Row]) -> str:
    """Every key's last value."""
    last: dict[str, Any] = {**training[-1], **(held_out[-1] if held_out else {})}
    last["step"] = max(row["step"] for row in [*training, *held_out])
    return "\n".join(
        f'<tr><td>{html.escape(key)}</td><td class="number">{value:.6g}</td></tr>' for key, value in last.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="disentangled.trainer.report", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path, help="run.dir of a training run")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {write_report(options.run)}")
    except (ValueError, OSError) as error:
        print_error(error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
