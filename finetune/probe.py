"""How good a pre-trained model is, in one table: `python -m disentangled.finetune.probe --model DIR ... --data DIR`.

What: each model is fine-tuned on a named set of small tasks over several seeds, at each of a few learning rates, of
which the one with the best mean counts: what suits random weights is too little for trained ones, and the other way
round. The table has a model a row and a task a column, means with the smallest and the largest. `--run DIR` probes each
checkpoint that a pre-training run keeps (`checkpoint.keep_every_steps`) and leaves DIR/probe.jsonl, of which the run's
report draws the scores against the step. `--scratch` adds the first model's architecture with random weights: what
pre-training is worth. Everything is kept in `--output`: the same command goes on, and more models add rows.
Exit codes: 0 done; 2 the user's mistake, named in one line.
Used by: users, experiments/embedding_sharing.py. Tested by tests/finetune/test_probe.py.
Not here: fine-tuning (run_task.py), choosing settings on a grid (search.py).
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from disentangled.finetune.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.run_task import finetune

PROBE_FILE = "probe.jsonl"  # of a run's folder: trainer/run_folder.py has the same name
SCRATCH = "from scratch"
PROBE_RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # of small encoders; the paper's base model has 1.5e-5 to 3e-5


@dataclass(frozen=True)
class Probe:
    """A task with the settings that every model is given."""

    task: str
    max_train_examples: int | None
    epochs: float
    max_length_tokens: int
    learning_rates: tuple[float, ...] = PROBE_RATES
    batch_size: int = 32
    languages: tuple[str, ...] = ("all",)


QUICK = (Probe("sst2", 4000, 3, 64), Probe("cola", 4000, 3, 64), Probe("stsb", 4000, 3, 128))
SUITES = {
    "quick": QUICK,
    "quick_xnli": (*QUICK, Probe("xnli", 4000, 3, 128, languages=("en",))),
    "glue_small": (
        Probe("sst2", None, 3, 128),
        Probe("cola", None, 5, 128),
        Probe("stsb", None, 5, 128),
        Probe("mrpc", None, 5, 128),
        Probe("rte", None, 5, 256),
    ),
}


@dataclass(frozen=True)
class Subject:
    """A model that is probed; step: of the pre-training run that it is a checkpoint of."""

    label: str
    model: Path
    from_scratch: bool = False
    step: int | None = None


def probe(
    subjects: Sequence[Subject], probes: Sequence[Probe], data: Path, output: Path, num_seeds: int
) -> list[dict[str, Any]]:
    """Fine-tune every model on every task; a row for each pair, in that order, as in the output's probe.jsonl.

    Raises:
        ValueError: two models of one label, or whatever a task finds wrong.
    """
    labels = [subject.label for subject in subjects]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two models are called {max(labels, key=labels.count)!r}: give them folders of other names")
    rows = []
    for subject in subjects:
        for item in probes:
            row: dict[str, Any] = {"label": subject.label, "model": str(subject.model), "task": item.task}
            if subject.step is not None:
                row["step"] = subject.step
            folder = output / subject.label.replace(" ", "_") / item.task
            found = [tune(subject, item, rate, data, folder, num_seeds) for rate in item.learning_rates]
            rows.append(row | max(found, key=lambda one: one["mean"]))
            say(f"{subject.label}: {describe(rows[-1])}")
    return rows


def choose_probes(suite: str, tasks: Sequence[str] | None) -> list[Probe]:
    """A suite's probes, of these tasks only; ValueError for one that is not in it."""
    probes = {item.task: item for item in SUITES[suite]}
    unknown = [task for task in tasks or () if task not in probes]
    if unknown:
        raise ValueError(f"--tasks: {unknown[0]!r} is not in suite {suite!r}: there are {', '.join(probes)}")
    return [probes[task] for task in tasks or probes]


def tune(subject: Subject, item: Probe, rate: float, data: Path, folder: Path, num_seeds: int) -> dict[str, Any]:
    """One task at one rate over all seeds."""
    values = []
    for seed in range(1, num_seeds + 1):
        options = options_of(subject, item, rate, data, folder / f"rate_{rate:g}" / f"seed_{seed}", seed)
        found = finetune(options)
        values.append(found.selected)
    return {"metric": found.selection, "learning_rate": rate, "values": values, "mean": fmean(values)}


def options_of(subject: Subject, item: Probe, rate: float, data: Path, folder: Path, seed: int) -> FinetuneOptions:
    """One fine-tuning run of a probe; its model is not kept."""
    return FinetuneOptions(
        task=item.task,
        model=str(subject.model),
        output=folder,
        data=data,
        languages=item.languages,
        max_train_examples=item.max_train_examples,
        max_length_tokens=item.max_length_tokens,
        learning_rate=rate,
        batch_size=item.batch_size,
        warmup_steps=50,
        epochs=item.epochs,
        seed=seed,
        from_scratch=subject.from_scratch,
        save_model=False,
    )


def describe(row: dict[str, Any]) -> str:
    """One cell in words."""
    spread = f" ({min(row['values']):.3f} to {max(row['values']):.3f})" if len(row["values"]) > 1 else ""
    return f"{row['task']} {row['metric']} {row['mean']:.3f}{spread}"


def table_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown: a model a row, a task a column."""
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in rows))
    yield "| | " + " | ".join(f"{task}, {metric}" for task, metric in tasks) + " |"
    yield "|---" * (len(tasks) + 1) + "|"
    for label in dict.fromkeys(row["label"] for row in rows):
        cells = {row["task"]: describe(row).split(" ", 2)[2] for row in rows if row["label"] == label}
        yield f"| {label} | " + " | ".join(cells.get(task, "") for task, _ in tasks) + " |"


def checkpoints_of_run(run: Path, output: Path) -> list[Subject]:
    """A run's kept checkpoints, each exported below `output` by trainer/export.py as a user would.

    Raises:
        ValueError: the folder has none, or one could not be exported.
    """
    names = sorted(path.name for path in (run / "checkpoints").glob("step_*") if not path.suffix)
    if not names:
        raise ValueError(f"run {run} holds no checkpoint: train until it has saved one")
    subjects = []
    for name in names:
        exported = output / "exports" / name
        command = ["disentangled.trainer.export", "--run", str(run), "--checkpoint", name, "--output", str(exported)]
        if (
            not exported.exists()
            and subprocess.run([sys.executable, "-m", *command], stdout=subprocess.DEVNULL).returncode
        ):
            raise ValueError(f"checkpoint {name} of {run} could not be exported, see above")
        step = int(name.removeprefix("step_"))
        subjects.append(Subject(f"step {step:,}", exported, step=step))
    return subjects


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of_run(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line a step with a key a task, as the run's report reads them."""
    steps = sorted({row["step"] for row in rows if "step" in row})
    return [
        {"step": step} | {f"probe_{row['task']}": row["mean"] for row in rows if row.get("step") == step}
        for step in steps
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(prog="python -m disentangled.finetune.probe", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, nargs="+", default=[], metavar="DIR", help="Hugging Face folders")
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run.dir of a pre-training run")
    parser.add_argument("--data", required=True, type=Path, metavar="DIR", help="the folder with the tasks' files")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="kept: the same command goes on")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick", help="which tasks (%(default)s)")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="of the suite (all)")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tunings of each task (%(default)s)")
    parser.add_argument("--scratch", action="store_true", help="also the first model with random weights")
    try:
        options = parser.parse_args(arguments)
        if options.seeds < 1:
            raise ValueError(f"--seeds is {options.seeds}: it must be at least 1")
        subjects = [Subject(path.name, path) for path in options.model]
        if options.run is not None:
            subjects += checkpoints_of_run(options.run, options.output)
        if not subjects:
            raise ValueError("nothing to probe: give --model DIR or --run DIR")
        if options.scratch:
            subjects.insert(0, Subject(SCRATCH, subjects[0].model, from_scratch=True))
        probes = choose_probes(options.suite, options.tasks)
        rows = probe(subjects, probes, options.data, options.output, options.seeds)
        write_rows(options.output / PROBE_FILE, rows)
        if options.run is not None:
            write_rows(options.run / PROBE_FILE, rows_of_run(rows))
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    print(*table_lines(rows), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
