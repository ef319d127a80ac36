"""One small run on two gloo ranks, launched as a user would, and what it leaves, ready for comparison."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from disentangled.trainer.checkpoint import MODELS, list_checkpoints, load_state
from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.speedometer import MACHINE_KEYS
from tests.launching import Finished, launch_command, run_command
from tests.trainer.tiny_run import SMALLEST


@dataclass(frozen=True)
class Run:
    """total_steps: enough for a signal to arrive before the end. every_steps divides no checkpoint's step."""

    total_steps: int = 90
    every_steps: int = 7


RUN = Run()


def run_command_line(shards: Path, folder: Path, *overrides: str) -> tuple[str, ...]:
    """The command that starts the run, or goes on with it."""
    return launch_command(*run_arguments(shards, folder, *overrides))


def run_arguments(shards: Path, folder: Path, *overrides: str) -> tuple[str, ...]:
    """The trainer's arguments of the run, by whatever it is launched."""
    return (
        "--recipe", "tiny", "--engine", "fp32_cpu", *SMALLEST, f"data.shards={shards}", f"run.dir={folder}",
        f"schedule.total_steps={RUN.total_steps}", f"log.every_steps={RUN.every_steps}", "log.tensorboard=false",
        "evaluate.every_steps=40", "evaluate.num_sequences=12", "checkpoint.keep_last=3",
        "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1", *overrides,
    )  # fmt: skip


def launch_run(shards: Path, folder: Path, *overrides: str) -> Finished:
    """Run it to its end."""
    return run_command(*run_command_line(shards, folder, *overrides))


def last_state(folder: Path) -> dict[str, Any]:
    """Every tensor and number of both engines and of the trainer in the newest checkpoint, by name."""
    newest = list_checkpoints(folder)[0]
    state: dict[str, Any] = {"trainer": vars(load_state(newest)) | {"config": None}}
    for name in MODELS:
        for file in sorted((newest / name).glob("*.safetensors")):
            state |= {f"{name}/{file.name}/{key}": values for key, values in load_file(file).items()}
    return state


def differing_names(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names whose values are not equal bit for bit."""
    assert one.keys() == other.keys()
    return [
        name
        for name, value in one.items()
        if not (torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name])
    ]


def rows_without_timings(folder: Path) -> list[dict[str, float]]:
    """All metrics that depend on neither the clock nor the machine."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name not in MACHINE_KEYS} for row in rows]
