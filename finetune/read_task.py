"""All data of a run: training, development and test sets as `datasets.Dataset`s, and the kind of task they make.

Used by: run_task.py. Tested by tests/finetune/test_tasks.py, test_bad_input.py.
Not here: formats (read_*.py), which files (find_files.py).
"""

from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from disentangled.finetune.command_line import say
from disentangled.finetune.find_files import find_test, find_train, find_validation
from disentangled.finetune.kinds import Kind, make_kind
from disentangled.finetune.options import FinetuneOptions, resolve_task
from disentangled.finetune.read_choices import read_choices
from disentangled.finetune.read_conll import read_conll
from disentangled.finetune.read_sequences import read_sequences
from disentangled.finetune.read_squad import read_record, read_squad
from disentangled.finetune.tasks import Task


@dataclass(frozen=True)
class TaskData:
    """What a run trains on and is measured on.

    Attributes:
        train: shuffled only where it was cut to `max_train_examples`.
    """

    task: Task
    kind: Kind
    train: Dataset
    validation: dict[str, Dataset]
    test: dict[str, Dataset]


def read_task(options: FinetuneOptions) -> TaskData:
    """Find and read a run's files.

    Raises:
        ValueError: anything in options or files that the user must mend, in one line.
    """
    task = resolve_task(options)
    train_files = find_train(options, task)
    validation_files, test_files = find_validation(options, task), find_test(options)
    train = concatenate_datasets([read_split(path, task) for path in train_files])
    kind = make_kind(task, train)
    if options.max_train_examples is not None and options.max_train_examples < len(train):
        train = train.shuffle(seed=options.seed).select(range(options.max_train_examples))
    return TaskData(
        task,
        kind,
        train,
        {name: read_split(path, task) for name, path in validation_files.items()},
        {name: read_split(path, task) for name, path in test_files.items()},
    )


def read_split(path: Path, task: Task) -> Dataset:
    """The examples of a file.

    Raises:
        ValueError: it is broken or empty.
    """
    broken: list[str] = []
    if task.kind == "choice":
        examples = read_choices(path, task)
    elif task.kind == "tags":
        examples = read_conll(path)
    elif task.reader == "record":
        examples = read_record(path)
    elif task.kind == "spans":
        examples = read_squad(path, task.has_unanswerable)
    else:
        examples = read_sequences(path, task, broken)
    if broken:
        say(f"{path}: left out {len(broken)} rows with too few or too many fields, the first at {broken[0]}")
    if not len(examples):
        raise ValueError(f"{path} holds no examples: give a file that does")
    return examples
