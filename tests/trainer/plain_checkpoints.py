"""Two small models in plain torch whose checkpoints tests write, damage and read."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from disentangled.trainer.checkpoint import MODELS, TrainerState
from disentangled.trainer.checkpoint_writer import CheckpointWriter
from disentangled.trainer.engine_state import take_record
from disentangled.trainer.sections import CheckpointSection
from disentangled.trainer.update_guard import NormMean


class OneRank:
    """The only rank of a run, behind what is used of trainer/distributed.Ranks."""

    rank = 0
    world_size = 1
    is_first = True

    def copy_from_first(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value]


class PlainDeepSpeed:
    """What engine_state.py uses of a DeepSpeed engine, at stage 0."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=0.1)
        self.skipped_steps = 0

    def fp16_enabled(self) -> bool:
        return False

    def train(self, num_steps: int) -> None:
        for step in range(num_steps):
            self.optimizer.zero_grad()
            self.module(torch.full((3, 4), float(step))).square().sum().backward()
            self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """A copy of all weights and moments."""
        found = {}
        for name, parameter in self.module.named_parameters():
            values = {"weight": parameter, **self.optimizer.state.get(parameter, {})}
            found |= {f"{name} {key}": value.detach().clone() for key, value in values.items()}
        return found


class PlainEngine:
    def __init__(self, seed: int) -> None:
        self.deepspeed = PlainDeepSpeed(seed)


class PlainPair:
    """Both engines, after `num_steps` updates."""

    def __init__(self, num_steps: int = 0) -> None:
        self.generator, self.discriminator = PlainEngine(1), PlainEngine(2)
        self.train(num_steps)

    def train(self, num_steps: int) -> None:
        for name in MODELS:
            getattr(self, name).deepspeed.train(num_steps)


def trainer_state(pair: PlainPair, step: int) -> TrainerState:
    """The state of a run at `step`, eight rows a step."""
    records = {name: take_record(getattr(pair, name).deepspeed) for name in MODELS}
    norms = {name: NormMean(1.5, step) for name in MODELS}
    config = {"run": {"seed": 1}}
    return TrainerState(
        step, step * 8, "dataset", 1, "ZeRO stage 0 in fp32", [1.5, float(step)], config, records, norms
    )


def make_writer(run_dir: Path, **section: Any) -> CheckpointWriter:
    return CheckpointWriter(run_dir, CheckpointSection(**section), OneRank())  # type: ignore[arg-type]


def save(run_dir: Path, step: int, **section: Any) -> Path:
    """Write a checkpoint of `step` updates."""
    pair = PlainPair(step)
    writer = make_writer(run_dir, **section)
    writer.begin(pair, trainer_state(pair, step))  # type: ignore[arg-type]
    return writer.finish()
