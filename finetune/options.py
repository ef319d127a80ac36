"""What a fine-tuning run is asked for: `FinetuneOptions`, frozen; its defaults lie on the paper's grid.

Adam's betas and epsilon, weight decay, clipping, linear decay and at most 10 epochs are those of table 11 of
arXiv 2111.09543; learning rate, batch, warm-up and dropout have a grid there (search_grid.py), of which a point of the
base model's is the default here.
Used by: arguments.py, run_task.py, search.py. Tested by tests/finetune/test_options.py.
Not here: what a task is (tasks.py), the command line (arguments.py).
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from disentangled.finetune.metrics import LABEL_METRICS, SCORE_METRICS
from disentangled.finetune.tasks import OWN_DATA, Task, find_task

PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class FinetuneOptions:
    """One run of one task.

    Attributes:
        task: a name of tasks.py, or `sequence`, `choice`, `spans`, `tags` for one's own data.
        model: a Hugging Face folder, or a name on its hub.
        output: the folder to make; the same call goes on with what it holds.
        data: the folder with the task's files. train, validation, test: files that take their place.
        languages, train_languages: codes, for tasks that have files by language; `("all",)`: all that are found.
        batch_size: sequences of an update, over all processes and accumulated micro-batches.
        micro_batch_size: sequences a process takes at a time; None: its whole share.
        task_dropout: of the head alone; None: what the model's config says.
        max_steps: ends before `epochs` do; None: no such end.
        evaluate_every_steps: None: once an epoch.
        layer_decay: a layer's learning rate is this share of the one above it.
        sift_weight: weight of the adversarial divergence, 0: none; sift_step and sift_init are sizes of the
            perturbation's ascent and of its first draw (sift.py).
        ds_config: a name of ds_configs/ or a path, under DeepSpeed's launcher.
    """

    task: str
    model: str
    output: Path
    data: Path | None = None
    train: tuple[Path, ...] = ()
    validation: tuple[Path, ...] = ()
    test: tuple[Path, ...] = ()
    languages: tuple[str, ...] = ("all",)
    train_languages: tuple[str, ...] = ("en",)
    text_columns: tuple[str, ...] = ()
    choice_columns: tuple[str, ...] = ()
    label_column: str = "label"
    regression: bool = False
    unanswerable: bool = False
    max_train_examples: int | None = None
    max_length_tokens: int | None = None
    learning_rate: float = 2e-5
    batch_size: int = 32
    micro_batch_size: int | None = None
    warmup_steps: int = 100
    epochs: float = 10.0
    max_steps: int | None = None
    evaluate_every_steps: int | None = None
    task_dropout: float | None = 0.1
    weight_decay: float = 0.01
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-6
    gradient_clipping: float = 1.0
    layer_decay: float = 1.0
    sift_weight: float = 0.0
    sift_step: float = 1e-4
    sift_init: float = 1e-2
    seed: int = 1
    precision: str = "fp32"
    ds_config: str | None = None
    accelerate: bool = True
    from_scratch: bool = False
    save_model: bool = True

    def __post_init__(self) -> None:
        positive = ("learning_rate", "batch_size", "epochs", "adam_epsilon", "gradient_clipping", "sift_step")
        for name in (*positive, "micro_batch_size", "max_steps", "evaluate_every_steps", "max_train_examples"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}: it must be above 0")
        for name in ("warmup_steps", "weight_decay", "sift_weight", "sift_init", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must not be below 0")
        if self.task_dropout is not None and not 0 <= self.task_dropout < 1:
            raise ValueError(f"task_dropout is {self.task_dropout}: it must be in [0, 1)")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}: it must be in (0, 1], 1 for none")
        if self.max_length_tokens is not None and self.max_length_tokens < 8:
            raise ValueError(f"max_length_tokens is {self.max_length_tokens}: it must be 8 or more")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision is {self.precision!r}: choose one of {', '.join(PRECISIONS)}")

    def as_record(self) -> dict[str, Any]:
        """The options as JSON has them: paths are strings, tuples lists."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return record


def resolve_task(options: FinetuneOptions) -> Task:
    """The task's row; for one's own data a row made of the columns that the options name.

    Raises:
        ValueError: an unknown task, or columns that the kind of task needs and that are not named.
    """
    if options.task not in OWN_DATA:
        for given in ("text_columns", "choice_columns"):
            if getattr(options, given):
                raise ValueError(f"{given} is for one's own data ({', '.join(OWN_DATA)}): {options.task} has its own")
        return find_task(options.task)
    if not options.train or not options.validation:
        raise ValueError(f"task {options.task!r} is for one's own data: name it with --train and --validation")
    if options.task == "spans":
        metrics: tuple[str, ...] = ("f1", "exact_match")
        return Task(
            "spans", "spans", "squad", metrics=metrics, max_length_tokens=384, has_unanswerable=options.unanswerable
        )
    if options.task == "tags":
        return Task("tags", "tags", "conll", metrics=("f1", "precision", "recall"))
    if not options.text_columns:
        raise ValueError(f"task {options.task!r} needs --text-columns: name the columns that hold the text")
    columns: dict[str, Any] = {"text_columns": options.text_columns, "label_column": options.label_column}
    if options.task == "choice":
        if not options.choice_columns:
            raise ValueError("task 'choice' needs --choice-columns: name them, or the one that holds a list")
        return Task("choice", "choice", choice_columns=options.choice_columns, **columns)
    if len(options.text_columns) > 2:
        raise ValueError(f"--text-columns names {len(options.text_columns)} columns: a model reads one text or a pair")
    names = SCORE_METRICS if options.regression else tuple(name for name in LABEL_METRICS if name != "f1")
    return Task("sequence", "sequence", regression=options.regression, metrics=names, **columns)
