"""The named tasks, one row each: files looked for, columns, labels, what is measured.

Files are those of each data set's own release (GLUE's and SuperGLUE's folders, XTREME's names for languages); of the
alternatives of a split the first that exists is read. `{language}` stands for a language's code: there is one
development set for each that is found. The first metric chooses the best epoch and the best setting of a search.
Metrics: tables 3 to 7 of arXiv 2111.09543.
Used by: find_files.py, run_task.py. Tested by tests/finetune/test_tasks.py.
Not here: reading (read_*.py), finding (find_files.py), one's own data (options.py makes a row of its columns).
"""

from dataclasses import dataclass, field
from typing import Literal

KindName = Literal["sequence", "choice", "spans", "tags"]
Reader = Literal["rows", "conll", "squad", "record", "race", "commonsenseqa"]
Alternatives = tuple[str, ...]

NLI_LABELS = ("entailment", "neutral", "contradiction")
YES_NO = ("0", "1")


@dataclass(frozen=True)
class Task:
    """What there is to know about a task before its files are read.

    Attributes:
        train: names of the training file, relative to the data folder.
        validation: names of the development sets' files, by the name of the set; test sets are always named.
        positions: column names of a file without a header line; None where the first line has them.
        labels: all labels in the model's order; empty: those of the training data, sorted. Regression has none.
        label_aliases: other spellings found in releases.
        drops_broken_rows: the release itself has rows with too few columns; they are left out and counted.
        max_length_tokens: a text's or window's length in pieces, special tokens included.
    """

    name: str
    kind: KindName
    reader: Reader = "rows"
    train: Alternatives = ()
    validation: dict[str, Alternatives] = field(default_factory=dict)
    positions: tuple[str, ...] | None = None
    text_columns: tuple[str, ...] = ()
    choice_columns: tuple[str, ...] = ()
    label_column: str = "label"
    labels: tuple[str, ...] = ()
    label_aliases: dict[str, str] = field(default_factory=dict)
    regression: bool = False
    metrics: tuple[str, ...] = ("accuracy",)
    max_length_tokens: int = 256
    drops_broken_rows: bool = False
    has_unanswerable: bool = False


def glue(name: str, folder: str, text_columns: tuple[str, ...], **changes: object) -> Task:
    """A task of GLUE's release: `<folder>/train.tsv`, `<folder>/dev.tsv`, or these files themselves."""
    files = {
        "train": (f"{folder}/train.tsv", "train.tsv"),
        "validation": {"validation": (f"{folder}/dev.tsv", "dev.tsv")},
        "text_columns": text_columns,
        "labels": YES_NO,
    }
    return Task(name=name, kind="sequence", **files | changes)  # type: ignore[arg-type]


def by_language(*names: str) -> dict[str, Alternatives]:
    """Sets that are found by their language."""
    return {"{language}": names}


TASKS = (
    glue(
        "cola",
        "CoLA",
        ("sentence",),
        positions=("source", "label", "mark", "sentence"),
        metrics=("matthews", "accuracy"),
    ),
    glue("sst2", "SST-2", ("sentence",)),
    glue("mrpc", "MRPC", ("#1 String", "#2 String"), label_column="Quality", metrics=("accuracy", "f1")),
    glue(
        "stsb",
        "STS-B",
        ("sentence1", "sentence2"),
        label_column="score",
        labels=(),
        regression=True,
        metrics=("correlation", "pearson", "spearman"),
    ),
    glue(
        "qqp",
        "QQP",
        ("question1", "question2"),
        label_column="is_duplicate",
        metrics=("accuracy", "f1"),
        drops_broken_rows=True,
    ),
    glue(
        "mnli",
        "MNLI",
        ("sentence1", "sentence2"),
        label_column="gold_label",
        labels=NLI_LABELS,
        validation={
            "matched": ("MNLI/dev_matched.tsv", "dev_matched.tsv"),
            "mismatched": ("MNLI/dev_mismatched.tsv", "dev_mismatched.tsv"),
        },
    ),
    glue("qnli", "QNLI", ("question", "sentence"), labels=("entailment", "not_entailment")),
    glue("rte", "RTE", ("sentence1", "sentence2"), labels=("entailment", "not_entailment")),
    glue("wnli", "WNLI", ("sentence1", "sentence2")),
    Task(
        "xnli",
        "sequence",
        train=("train-{language}.tsv", "xnli.train.{language}.tsv", "multinli/multinli.train.{language}.tsv"),
        validation=by_language("dev-{language}.tsv", "xnli.dev.{language}.tsv"),
        positions=("premise", "hypothesis", "label"),
        text_columns=("premise", "hypothesis"),
        labels=NLI_LABELS,
        label_aliases={"contradictory": "contradiction"},
    ),
    Task(
        "squad1",
        "spans",
        "squad",
        train=("train-v1.1.json",),
        validation={"validation": ("dev-v1.1.json",)},
        metrics=("f1", "exact_match"),
        max_length_tokens=384,
    ),
    Task(
        "squad2",
        "spans",
        "squad",
        train=("train-v2.0.json",),
        validation={"validation": ("dev-v2.0.json",)},
        metrics=("f1", "exact_match"),
        max_length_tokens=384,
        has_unanswerable=True,
    ),
    Task(
        "tydiqa",
        "spans",
        "squad",
        train=("tydiqa.goldp.{language}.train.json", "tydiqa-goldp-v1.1-train/tydiqa.goldp.{language}.train.json"),
        validation=by_language(
            "tydiqa.goldp.{language}.dev.json", "tydiqa-goldp-v1.1-dev/tydiqa.goldp.{language}.dev.json"
        ),
        metrics=("f1", "exact_match"),
        max_length_tokens=384,
    ),
    Task(
        "record",
        "spans",
        "record",
        train=("ReCoRD/train.jsonl", "train.jsonl"),
        validation={"validation": ("ReCoRD/val.jsonl", "val.jsonl")},
        metrics=("f1", "exact_match"),
        max_length_tokens=384,
    ),
    Task(
        "conll2003",
        "tags",
        "conll",
        train=("train.txt", "eng.train"),
        validation={"validation": ("valid.txt", "dev.txt", "eng.testa")},
        metrics=("f1", "precision", "recall"),
    ),
    Task(
        "wikiann",
        "tags",
        "conll",
        train=("train-{language}.tsv",),
        validation=by_language("dev-{language}.tsv"),
        metrics=("f1", "precision", "recall"),
    ),
    Task(
        "race",
        "choice",
        "race",
        train=("RACE/train", "train"),
        validation={"validation": ("RACE/dev", "dev")},
        max_length_tokens=512,
    ),
    Task(
        "swag",
        "choice",
        train=("train.csv",),
        validation={"validation": ("val.csv",)},
        text_columns=("sent1", "sent2"),
        choice_columns=("ending0", "ending1", "ending2", "ending3"),
    ),
    Task(
        "commonsenseqa",
        "choice",
        "commonsenseqa",
        train=("train_rand_split.jsonl", "train.jsonl"),
        validation={"validation": ("dev_rand_split.jsonl", "valid.jsonl", "dev.jsonl")},
    ),
    Task(
        "copa",
        "choice",
        train=("COPA/train.jsonl", "train.jsonl"),
        validation={"validation": ("COPA/val.jsonl", "val.jsonl")},
        text_columns=("premise", "question"),
        choice_columns=("choice1", "choice2"),
    ),
)
BY_NAME = {task.name: task for task in TASKS}
OWN_DATA: tuple[KindName, ...] = ("sequence", "choice", "spans", "tags")


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is none.
    """
    if name not in BY_NAME:
        raise ValueError(
            f"task {name!r} is not known: choose one of {', '.join(BY_NAME)}, or for your own data "
            f"{', '.join(OWN_DATA)} with --train and --validation"
        )
    return BY_NAME[name]
