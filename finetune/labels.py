"""Labels to indices: those a task names, or those of the training data.

Used by: sequences.py, tags.py, read_task.py. Tested by tests/finetune/test_bad_input.py.
"""

from collections.abc import Iterable, Sequence
from typing import Any


def label_ids(batch: dict[str, list[Any]], labels: Sequence[str]) -> list[int]:
    """The index of each example's label.

    Raises:
        ValueError: a label that is not one of `labels`; its place is named.
    """
    index = {label: number for number, label in enumerate(labels)}
    for place, label in zip(batch["place"], batch["label"], strict=True):
        if label not in index:
            raise ValueError(unknown_label(place, label, labels))
    return [index[label] for label in batch["label"]]


def unknown_label(place: str, label: str, labels: Sequence[str]) -> str:
    """What to say of a label that was never seen."""
    known = ", ".join(map(repr, labels[:12])) + (", ..." if len(labels) > 12 else "")
    return f"{place}: label {label!r} is not one of the task's or of the training data's ({known}): mend or remove it"


def sorted_labels(found: Iterable[str]) -> tuple[str, ...]:
    """The distinct labels: numbers first, in their order, then words."""
    return tuple(sorted(set(found), key=lambda label: (not label.isdecimal(), label.isdecimal() * len(label), label)))
