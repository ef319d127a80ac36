"""What happened to a run besides steps: starts, resumes, saves, stops and faults, one JSON object a line.

What: RUN/events.jsonl, each line {"time": unix seconds, "step": updates done, "kind": one word, "text": one line, ...}.
Lines are only ever added, so the file tells the run's whole story, the steps that a restart repeated included. It is
written by the first rank. A disk that is full costs the line and a warning, never the run.
Used by: trainer/assemble.py, trainer/loop.py, trainer/report.py. Tested by tests/trainer/test_events.py.
Not here: metrics (trainer/metric_log.py).
"""

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

EVENTS_FILE = "events.jsonl"

Event = dict[str, Any]


class EventLog:
    """Adds lines to a run's events.jsonl; made on the first rank only."""

    def __init__(self, run_dir: Path) -> None:
        self._path = Path(run_dir) / EVENTS_FILE

    def write(self, kind: str, step: int, text: str, **more: Any) -> None:
        """Add one event, on disk when this returns; `more` adds keys. Never raises: what went wrong is a warning."""
        event = {"time": round(time.time(), 3), "step": step, "kind": kind, "text": " ".join(text.split()), **more}
        line = json.dumps(event, default=str).encode() + b"\n"
        try:
            with self._path.open("ab+") as file:
                if file.tell() and not _ends_whole(file):
                    line = b"\n" + line  # a line before it was cut short
                file.write(line)
        except OSError as error:
            with contextlib.suppress(OSError):  # a terminal that is gone
                print(f"warning: {kind!r} of step {step} is not in {self._path}: {error}", file=sys.stderr, flush=True)


def read_events(run_dir: Path) -> list[Event]:
    """All whole events of a run, in the order written; lines that were cut short are passed over."""
    path = Path(run_dir) / EVENTS_FILE
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if isinstance(event, dict) and {"time", "step", "kind", "text"} <= event.keys():
                events.append(event)
    return events


def _ends_whole(file: Any) -> bool:
    file.seek(-1, 2)
    return bool(file.read(1) == b"\n")
