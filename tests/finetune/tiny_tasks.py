"""Small files of every kind of task with labels drawn at random: what can be learnt from them is only their rows."""

import json
import random
from pathlib import Path
from typing import Any

from disentangled.finetune.options import FinetuneOptions
from tests.data_prep.tiny_corpus import make_documents

WORDS = sorted({word for document in make_documents(60) for word in document.split() if word.isascii()})


def write_texts(path: Path, count: int, seed: int) -> Path:
    """Texts of four words, with "yes" or "no" drawn at random; both are as many."""
    draw = random.Random(seed)
    labels = draw.sample(["yes", "no"] * (count // 2), count)
    return write_rows(path, [{"text": " ".join(draw.sample(WORDS, k=4)), "label": label} for label in labels])


def write_choices(path: Path, count: int, seed: int) -> Path:
    """A context and two choices of three words each; the right one drawn at random, each as often."""
    draw = random.Random(seed)
    labels = draw.sample(["first", "second"] * (count // 2), count)
    names = ("context", "first", "second")
    return write_rows(
        path, [{name: " ".join(draw.choices(WORDS, k=3)) for name in names} | {"label": label} for label in labels]
    )


def write_sentences(path: Path, count: int, seed: int) -> Path:
    """Sentences of four words; two neighbouring ones, drawn at random, are an entity."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        tags = ["O"] * 4
        start = draw.randrange(3)
        tags[start : start + 2] = ["B-LOC", "I-LOC"]
        lines += [f"{word}\t{tag}\n" for word, tag in zip(draw.sample(WORDS, k=4), tags, strict=True)] + ["\n"]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def write_questions(path: Path, count: int, seed: int) -> Path:
    """Texts of eight words with a question of two; the answer is one of the words, drawn at random."""
    draw = random.Random(seed)
    paragraphs = []
    for number in range(count):
        words = draw.sample(WORDS, k=8)
        chosen = draw.randrange(8)
        answer = {"text": words[chosen], "answer_start": sum(len(word) + 1 for word in words[:chosen])}
        question = {"id": f"{number}", "question": " ".join(draw.choices(WORDS, k=2)), "answers": [answer]}
        paragraphs.append({"context": " ".join(words), "qas": [question]})
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_options(task: str, model: Path, output: Path, **changes: Any) -> FinetuneOptions:
    """A run that learns a few dozen rows by heart."""
    settings: dict[str, Any] = {
        "learning_rate": 3e-3,
        "batch_size": 16,
        "warmup_steps": 4,
        "task_dropout": 0.0,
        "max_steps": 100,
        "evaluate_every_steps": 100,
        "save_model": False,
    }
    return FinetuneOptions(task=task, model=str(model), output=output, **settings | changes)
