"""The table of tasks: every row's files are found and read in its release's form, and its metrics exist.

Not here: real files (test_real_data.py).
"""

from pathlib import Path

import pytest

from disentangled.finetune.find_files import find_train, find_validation
from disentangled.finetune.metrics import LABEL_METRICS, SCORE_METRICS
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.read_task import read_split
from disentangled.finetune.tasks import TASKS, Task, find_task

# a line of each release's training file
GLUE_LINES = {
    "cola": "gj04\t1\t\tFred watered the plants flat.",
    "sst2": "sentence\tlabel\nof saucy \t1",
    "mrpc": 'Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe said "no\tHe said yes',
    "stsb": "index\tgenre\tsentence1\tsentence2\tscore\n0\tnews\tA\tB\t3.8",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0",
    "mnli": "index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA\tB\tneutral\tneutral",
    "qnli": "index\tquestion\tsentence\tlabel\n0\tA\tB\tnot_entailment",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\tentailment",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tA\tB\t1",
    "xnli": "A\tB\tneutral",
}


def options(task: str, data: Path, **changes: object) -> FinetuneOptions:
    return FinetuneOptions(task, "model", Path("output"), data=data, **changes)


@pytest.mark.parametrize("name", GLUE_LINES)
def test_texts_of_a_release_are_found_and_read(name: str, tmp_path: Path) -> None:
    task = find_task(name)
    for alternatives in (task.train, *task.validation.values()):
        path = tmp_path / alternatives[0].replace("{language}", "en")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(GLUE_LINES[name] + "\n", encoding="utf-8")
    (train,) = find_train(options(name, tmp_path), task)
    (row,) = read_split(train, task)
    assert len(row["texts"]) == len(task.text_columns)
    assert row["label"] == 3.8 if task.regression else row["label"] in task.labels
    sets = find_validation(options(name, tmp_path), task)
    assert list(sets) == [key.replace("{language}", "en") for key in task.validation]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_rows_are_complete(task: Task) -> None:
    assert task.train and task.validation
    known = {"sequence": (*LABEL_METRICS, *SCORE_METRICS), "choice": ("accuracy",)}
    others = {"spans": ("f1", "exact_match"), "tags": ("f1", "precision", "recall")}
    assert set(task.metrics) <= set((known | others)[task.kind])
    assert task.kind != "sequence" or task.text_columns
    assert task.kind != "sequence" or bool(task.labels) != task.regression


def test_languages_are_found_and_english_comes_first(tmp_path: Path) -> None:
    for name in ("xnli.dev.de.tsv", "xnli.dev.en.tsv", "xnli.dev.zh-CN.tsv", "train-en.tsv", "train-de.tsv"):
        (tmp_path / name).touch()
    task = find_task("xnli")
    assert list(find_validation(options("xnli", tmp_path), task)) == ["en", "de", "zh-CN"]
    assert list(find_validation(options("xnli", tmp_path, languages=("de",)), task)) == ["de"]
    assert [path.name for path in find_train(options("xnli", tmp_path), task)] == ["train-en.tsv"]
    every = find_train(options("xnli", tmp_path, train_languages=("all",)), task)
    assert [path.name for path in every] == ["train-en.tsv", "train-de.tsv"]
    with pytest.raises(ValueError, match=r"no file for language 'fr': there are de, en, zh-CN"):
        find_validation(options("xnli", tmp_path, languages=("fr",)), task)
