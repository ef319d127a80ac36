"""Options: every field has an argument, defaults are the paper's, JSON has them all, bad values are refused."""

from dataclasses import fields
from pathlib import Path

import pytest

from disentangled.finetune.arguments import make_options, make_parser
from disentangled.finetune.options import FinetuneOptions, resolve_task
from disentangled.finetune.search_grid import BASE

REQUIRED = ("--task", "cola", "--model", "m", "--output", "o")
# those whose argument is the other way round
NEGATED = {"accelerate", "save_model"}


def test_every_field_has_an_argument() -> None:
    known = set(vars(make_parser().parse_args(REQUIRED)))
    assert {field.name for field in fields(FinetuneOptions)} - NEGATED <= known


def test_no_arguments_are_the_defaults() -> None:
    assert make_options(make_parser().parse_args(REQUIRED)) == FinetuneOptions("cola", "m", Path("o"))


def test_defaults_are_table_11s() -> None:
    options = FinetuneOptions("cola", "m", Path("o"))
    assert (options.adam_beta1, options.adam_beta2, options.adam_epsilon) == (0.9, 0.999, 1e-6)
    assert (options.weight_decay, options.gradient_clipping, options.epochs) == (0.01, 1.0, 10)
    assert all(getattr(options, name) in values for name, values in BASE.items())


def test_arguments_of_lists_and_paths_arrive() -> None:
    words = ("--train", "a.csv", "b.csv", "--text-columns", "p", "h", "--no-accelerate", "--local_rank=1")
    options = make_options(make_parser().parse_args([*REQUIRED, *words]))
    assert options.train == (Path("a.csv"), Path("b.csv")) and options.text_columns == ("p", "h")
    assert not options.accelerate and options.save_model
    assert options.as_record()["train"] == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("learning_rate", 0.0), ("batch_size", 0), ("max_steps", 0), ("warmup_steps", -1), ("task_dropout", 1.0)),
        *(("layer_decay", 0.0), ("layer_decay", 1.1), ("max_length_tokens", 4), ("precision", "int8"), ("seed", -1)),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        FinetuneOptions("cola", "m", Path("o"), **{name: value})


@pytest.mark.parametrize("task", ["sequence", "choice"])
def test_own_data_needs_its_columns(task: str) -> None:
    file = (Path("a.csv"),)
    with pytest.raises(ValueError, match="needs --text-columns"):
        resolve_task(FinetuneOptions(task, "m", Path("o"), train=file, validation=file))
