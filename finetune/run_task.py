"""`finetune(options)`: one run of one task, from files to results; what the command, the search and probes call.

In order: read and check all data, encode it, load the model, train with transformers' Trainer with an evaluation and a
checkpoint each epoch, go back to the best epoch by the task's first metric on the first development set, predict every
set, write predictions, model and results. Called again with the same options it goes on from the newest checkpoint, or
returns the results that are there. On a CPU the same options give the same results, stopped and resumed or not.
Used by: users, run_command.py, search.py. Tested by tests/finetune/test_overfit.py, test_resume.py.
Not here: the kinds of tasks (kinds.py), what lies in the output (run_folder.py).
"""

import math
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedTokenizerBase, PrinterCallback, set_seed

from disentangled import __version__
from disentangled.finetune.command_line import say
from disentangled.finetune.load_model import load_model, load_tokenizer
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.read_task import TaskData, read_task
from disentangled.finetune.run_folder import (
    RESULTS,
    SETTINGS,
    check_folder,
    newest_checkpoint,
    read_results,
    remove_checkpoints,
    write_json,
    write_predictions,
)
from disentangled.finetune.task_trainer import ProgressLines, TaskTrainer
from disentangled.finetune.training_arguments import make_arguments

VERSIONED = ("torch", "transformers", "datasets", "accelerate", "scikit-learn", "scipy")


@dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        selection: the metric that chose the epoch; `selected` is its value on the first development set.
        metrics: by set and name, as fractions; of a task with several languages also the set `average`.
        record: all of results.json.
    """

    selection: str
    selected: float
    metrics: dict[str, dict[str, float]]
    record: dict[str, Any]


def finetune(options: FinetuneOptions) -> Results:
    """Run a task, or go on with it, or return its results where it is done.

    Raises:
        ValueError: whatever the user must mend, in one line, before anything is trained.
    """
    check_folder(options)
    done = read_results(options.output)
    if done is not None:
        return _from_record(done)
    quiet_libraries()
    data = read_task(options)
    tokenizer = load_tokenizer(options.model)
    trainer, encoded = make_trainer(options, data, tokenizer)
    if trainer.is_world_process_zero():
        write_json(options.output / SETTINGS, options.as_record())
    started = time.monotonic()
    checkpoint = newest_checkpoint(options.output)
    if checkpoint is not None:
        say(f"going on from {checkpoint}")
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    seconds = time.monotonic() - started
    metrics = evaluate_sets(trainer, data, encoded, options)
    selection = data.task.metrics[0]
    first = next(iter(data.validation))
    record = {
        "task": data.task.name,
        "selection": selection,
        "selected": metrics[first][selection],
        "metrics": metrics,
        "train_examples": len(data.train),
        "examples": {name: len(examples) for name, examples in (data.validation | data.test).items()},
        "best_step": find_best_step(trainer),
        "train_seconds": round(seconds, 1),
        "options": options.as_record(),
        "versions": {"disentangled": __version__, "python": platform.python_version()}
        | {name: version(name) for name in VERSIONED},
    }
    if options.save_model:
        trainer.save_model(str(options.output))
    if trainer.is_world_process_zero():
        if options.save_model:
            tokenizer.save_pretrained(options.output)
        write_json(options.output / RESULTS, record)
        remove_checkpoints(options.output)
    return _from_record(record)


def make_trainer(
    options: FinetuneOptions, data: TaskData, tokenizer: PreTrainedTokenizerBase
) -> tuple[TaskTrainer, dict[str, Dataset]]:
    """A Trainer at its first step, and the encoded development and test sets."""
    kind, max_length = data.kind, options.max_length_tokens or data.task.max_length_tokens
    max_length = min(max_length, tokenizer.model_max_length)
    train = kind.encode(data.train, tokenizer, max_length)
    sets = data.validation | data.test
    encoded = {name: kind.encode(examples, tokenizer, max_length) for name, examples in sets.items()}
    first = next(iter(data.validation))
    num_updates = count_updates(options, len(train))
    arguments = make_arguments(options, data.task.metrics[0], num_updates)
    set_seed(options.seed)
    model, lines = load_model(
        options.model,
        kind,
        from_scratch=options.from_scratch,
        task_dropout=options.task_dropout,
        use_accelerate=options.accelerate,
    )
    say(
        f"{data.task.name}: {len(data.train)} training examples, "
        + ", ".join(f"{len(rows)} of {name}" for name, rows in sets.items())
        + f"; up to {max_length} pieces; {num_updates} updates"
    )
    for line in lines:
        say(line)
    if options.warmup_steps >= num_updates:
        say(f"warning: the learning rate warms up for {options.warmup_steps} of {num_updates} updates: it never peaks")

    def compute_metrics(found: EvalPrediction) -> dict[str, float]:
        return kind.score(kind.decode(found.predictions, encoded[first], data.validation[first]))

    trainer = TaskTrainer(
        options,
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=encoded[first],
        data_collator=kind.collator(tokenizer),
        compute_metrics=compute_metrics,
        callbacks=[ProgressLines()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, encoded


def evaluate_sets(
    trainer: TaskTrainer, data: TaskData, encoded: dict[str, Dataset], options: FinetuneOptions
) -> dict[str, dict[str, float]]:
    """Metrics of every development and test set, predictions written; `average` over several development sets."""
    trainer.compute_metrics = None
    metrics: dict[str, dict[str, float]] = {}
    for name, examples in (data.validation | data.test).items():
        rows = data.kind.decode(trainer.predict(encoded[name]).predictions, encoded[name], examples)
        metrics[name] = data.kind.score(rows)
        if trainer.is_world_process_zero():
            write_predictions(options.output, name, rows)
    for label, sets in (("average", data.validation), ("average of tests", data.test)):
        if len(sets) > 1:
            metrics[label] = {
                metric: sum(metrics[name][metric] for name in sets) / len(sets) for metric in data.task.metrics
            }
    return metrics


def find_best_step(trainer: TaskTrainer) -> int:
    """The update whose model was kept."""
    best = trainer.state.best_model_checkpoint
    assert best is not None  # every run is evaluated and saved at its end
    return int(Path(best).name.rpartition("-")[2])


def count_updates(options: FinetuneOptions, num_rows: int) -> int:
    """Optimizer updates of a whole run over this many encoded rows."""
    if options.max_steps is not None:
        return options.max_steps
    return math.ceil(options.epochs * math.ceil(num_rows / options.batch_size))


def quiet_libraries() -> None:
    """Keep the libraries' bars and reports off the terminal: what a run is and finds is said in lines of our own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def format_metrics(results: Results) -> list[str]:
    """A line a set."""
    return [
        f"{name}: " + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items())
        for name, values in results.metrics.items()
    ]


def _from_record(record: dict[str, Any]) -> Results:
    return Results(record["selection"], record["selected"], record["metrics"], record)
