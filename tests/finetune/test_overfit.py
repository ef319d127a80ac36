"""Every kind of task learns 64 rows with random labels by heart, and knows no more than the majority of other rows.

The labels say nothing about the rows: whoever beats the majority on held-out ones has seen their labels.
"""

import math
from pathlib import Path
from typing import Any

from disentangled.finetune.run_task import Results, finetune
from tests.finetune.tiny_tasks import tiny_options, write_choices, write_questions, write_sentences, write_texts

NUM_TRAIN = 64
NUM_HELD_OUT = 100
# a share of as many fair coins exceeds one half by more than this once in 31,000 times: four standard deviations
LUCK = 4 * math.sqrt(0.25 / NUM_HELD_OUT)


def learn(task: str, model: Path, folder: Path, train: Path, held_out: Path, **changes: Any) -> Results:
    """Train on a file, choose the epoch on it too, and measure on another one."""
    files = {"train": (train,), "validation": (train,), "test": (held_out,)}
    return finetune(tiny_options(task, model, folder / "run", **files | changes))


def test_sequences_are_learnt_by_heart_and_nothing_else(pretrained: Path, tmp_path: Path) -> None:
    train = write_texts(tmp_path / "a.jsonl", NUM_TRAIN, 1)
    held_out = write_texts(tmp_path / "b.jsonl", NUM_HELD_OUT, 2)
    results = learn("sequence", pretrained, tmp_path, train, held_out, text_columns=("text",))
    assert results.metrics["a"]["accuracy"] == 1
    assert results.metrics["b"]["accuracy"] <= 0.5 + LUCK


def test_choices_are_learnt_by_heart_and_nothing_else(pretrained: Path, tmp_path: Path) -> None:
    train = write_choices(tmp_path / "a.jsonl", NUM_TRAIN, 1)
    held_out = write_choices(tmp_path / "b.jsonl", NUM_HELD_OUT, 2)
    columns = {"text_columns": ("context",), "choice_columns": ("first", "second")}
    results = learn("choice", pretrained, tmp_path, train, held_out, **columns)
    assert results.metrics["a"]["accuracy"] == 1
    assert results.metrics["b"]["accuracy"] <= 0.5 + LUCK


def test_tags_are_learnt_by_heart_and_nothing_else(pretrained: Path, tmp_path: Path) -> None:
    train = write_sentences(tmp_path / "a.tsv", NUM_TRAIN, 1)
    held_out = write_sentences(tmp_path / "b.tsv", NUM_HELD_OUT, 2)
    results = learn("tags", pretrained, tmp_path, train, held_out)
    assert results.metrics["a"]["f1"] >= 0.95
    # whoever guesses one entity a sentence is right once in three; less where more or fewer are guessed
    assert results.metrics["b"]["f1"] <= 1 / 3 + 4 * math.sqrt(2 / 9 / NUM_HELD_OUT)


def test_spans_are_learnt_by_heart_and_nothing_else(pretrained: Path, tmp_path: Path) -> None:
    train = write_questions(tmp_path / "a.json", NUM_TRAIN, 1)
    held_out = write_questions(tmp_path / "b.json", NUM_HELD_OUT, 2)
    results = learn("spans", pretrained, tmp_path, train, held_out, max_steps=140, evaluate_every_steps=140)
    assert results.metrics["a"]["exact_match"] >= 0.95
    # the answer is one of eight words
    assert results.metrics["b"]["exact_match"] <= 1 / 8 + 4 * math.sqrt(7 / 64 / NUM_HELD_OUT)
