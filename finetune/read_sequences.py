"""Texts and text pairs with a label or a score, as a `datasets.Dataset` of texts, label and place.

Used by: read_task.py. Tested by tests/finetune/test_read_rows.py.
Not here: the formats of files (read_rows.py), encoding (sequences.py).
"""

import math
from pathlib import Path
from typing import Any

from datasets import Dataset

from disentangled.finetune.read_rows import Row, read_rows
from disentangled.finetune.tasks import Task


def read_sequences(path: Path, task: Task, broken: list[str]) -> Dataset:
    """Columns: texts (one or two strings), label (str, or float in regression), place.

    Raises:
        ValueError: a missing column, a score that is not a finite number, anything of `read_rows`.
    """
    dropped = broken if task.drops_broken_rows else None
    rows: list[dict[str, Any]] = [
        {
            "texts": [row.text(column) for column in task.text_columns],
            "label": _score(row, task.label_column) if task.regression else _label(row, task),
            "place": row.place,
        }
        for row in read_rows(path, task.positions, dropped)
    ]
    return Dataset.from_list(rows)


def _label(row: Row, task: Task) -> str:
    label = row.text(task.label_column)
    return task.label_aliases.get(label, label)


def _score(row: Row, column: str) -> float:
    text = row.text(column)
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{row.place}: column {column!r} holds {text!r}: regression needs a finite number")
    return score
