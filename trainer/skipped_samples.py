"""Samples that a run passes over, because updates with them failed again and again.

What: RUN/skipped_samples.json, a list of {"step", "num_samples", "windows"}: before that step the run jumps over so
many samples, whose windows (rows of the packed training split) are named. Together with the step that gives the data's
position, now and after any resume. Without such a file, the position follows from the step alone.
Used by: trainer/loader.py, loop.py, train.py. Tested by tests/trainer/test_skipped_samples.py.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from disentangled.trainer.checkpoint import write_atomically

SKIPS_FILE = "skipped_samples.json"


@dataclass(frozen=True)
class Skip:
    """Before `step`, `num_samples` samples are passed over: these windows."""

    step: int
    num_samples: int
    windows: list[int]


def num_skipped_before(step: int, skips: Sequence[Skip]) -> int:
    """Samples passed over up to the beginning of a step."""
    return sum(skip.num_samples for skip in skips if skip.step <= step)


def read_skips(run_dir: Path) -> list[Skip]:
    """The skips of a run so far.

    Raises:
        ValueError: the file is damaged.
    """
    path = run_dir / SKIPS_FILE
    if not path.exists():
        return []
    try:
        return [Skip(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or choose another run.dir") from error


def write_skips(run_dir: Path, skips: Sequence[Skip]) -> None:
    """Keep the skips of a run."""
    write_atomically(run_dir / SKIPS_FILE, json.dumps([asdict(skip) for skip in skips]))
