"""The fine-tuning command's arguments, and the options that they make.

Every field of FinetuneOptions has an argument of its name; defaults are the fields' own.
Used by: run_command.py. Tested by tests/finetune/test_options.py.
Not here: what the options mean (options.py).
"""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from disentangled.finetune.command_line import OneLineParser
from disentangled.finetune.options import PRECISIONS, FinetuneOptions
from disentangled.finetune.search_grid import GRIDS
from disentangled.finetune.tasks import BY_NAME, OWN_DATA

DEFAULTS = {field.name: field.default for field in fields(FinetuneOptions)}
# (argument, type, what stands for its value, help) of what takes one value
DATA_TEXT = (
    ("data", Path, "DIR", "folder with the task's files"),
    ("label-column", str, "NAME", "own data: column of the label"),
    ("max-train-examples", int, "N", "train on a draw of so many"),
    ("max-length-tokens", int, "N", "pieces of a text or window; default: the task's"),
)
LISTS = (
    ("train", Path, "FILE", "training files, in place of the task's"),
    ("validation", Path, "FILE", "development files; the first chooses the best epoch"),
    ("test", Path, "FILE", "files with labels that are only measured on"),
    ("languages", str, "CODE", "languages to be measured on; default: all that are found"),
    ("train-languages", str, "CODE", "languages to train on; 'all' is translate-train-all"),
    ("text-columns", str, "NAME", "own data: columns of the text or pair of texts"),
    ("choice-columns", str, "NAME", "own data: columns of the choices, or one that holds a list"),
)
TRAINING = (
    ("learning-rate", float, "RATE", "peak"),
    ("batch-size", int, "N", "sequences of an update, over all processes"),
    ("micro-batch-size", int, "N", "sequences that a process takes at a time"),
    ("warmup-steps", int, "N", "updates until the peak"),
    ("epochs", float, "N", "at most; the best one is kept"),
    ("max-steps", int, "N", "end after so many updates"),
    ("evaluate-every-steps", int, "N", "default: once an epoch"),
    ("task-dropout", float, "SHARE", "of the task's layer"),
    ("weight-decay", float, "X", "of all but biases and norms"),
    ("adam-beta1", float, "X", ""),
    ("adam-beta2", float, "X", ""),
    ("adam-epsilon", float, "X", ""),
    ("gradient-clipping", float, "NORM", ""),
    ("layer-decay", float, "SHARE", "a layer's learning rate as a share of the one above"),
    ("sift-weight", float, "X", "scale-invariant fine-tuning: weight of the adversarial divergence"),
    ("sift-step", float, "X", "its ascent"),
    ("sift-init", float, "X", "its first draw"),
    ("seed", int, "N", "of new weights, order and dropout"),
    ("ds-config", str, "NAME", "a name of ds_configs/ or a path, under the deepspeed launcher"),
)


def make_parser() -> argparse.ArgumentParser:
    """The command's parser."""
    parser = OneLineParser(
        prog="disentangled.finetune",
        description="Fine-tune a model on a task and measure it on its development set.",
        allow_abbrev=False,
    )
    names = f"{', '.join(BY_NAME)}; own data: {', '.join(OWN_DATA)}"
    parser.add_argument("--task", required=True, metavar="NAME", help=names)
    parser.add_argument("--model", required=True, metavar="HF_DIR", help="a Hugging Face folder, or a name on its hub")
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the folder to make, or to go on with"
    )
    data = parser.add_argument_group("data")
    _add(data, DATA_TEXT)
    _add(data, LISTS, nargs="+")
    parser.add_argument("--regression", action="store_true", help="own data: the label is a number")
    parser.add_argument("--unanswerable", action="store_true", help="own data: some questions have no answer")
    _add(parser.add_argument_group("training"), TRAINING)
    parser.add_argument("--precision", default=DEFAULTS["precision"], choices=PRECISIONS)
    parser.add_argument("--from-scratch", action="store_true", help="random weights in the model's sizes")
    parser.add_argument("--no-accelerate", action="store_true", help="DebertaV2 with transformers' own attention")
    parser.add_argument("--no-save-model", action="store_true", help="leave results and predictions alone")
    searching = parser.add_argument_group("search")
    searching.add_argument("--search", action="store_true", help="walk the grid of the paper's table 11")
    searching.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="default 1 2 3")
    searching.add_argument("--size", choices=tuple(GRIDS), help="the table's column; default: the model's width says")
    searching.add_argument(
        "--grid", nargs="+", default=[], metavar="NAME=V,V", help="other values, as learning_rate=1e-5,2e-5"
    )
    # DeepSpeed's launcher gives it to scripts started with --module; which process this is, the environment says
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    return parser


def make_options(parsed: argparse.Namespace) -> FinetuneOptions:
    """The options of parsed arguments."""
    given = {name: value for name, value in vars(parsed).items() if name in DEFAULTS}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return FinetuneOptions(**given | {"accelerate": not parsed.no_accelerate, "save_model": not parsed.no_save_model})


def _add(group: Any, rows: Sequence[tuple[str, Any, str, str]], **settings: Any) -> None:
    for name, kind, metavar, text in rows:
        default = DEFAULTS[name.replace("-", "_")]
        shown = "" if default in (None, ()) else f"{'; ' if text else ''}default {_shown(default)}"
        group.add_argument(f"--{name}", type=kind, metavar=metavar, default=default, help=text + shown, **settings)


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else f"{default}"
