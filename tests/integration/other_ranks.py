"""Runs that change ranks and ZeRO stage half way: python -m tests.integration.other_ranks MODE SHARDS FOLDER.

What: MODE `whole` runs eight steps for each of ENGINES into FOLDER/<engine>, saving at four. MODE `half` goes on with
a copy of such a run as it was at step four, FOLDER/<engine>-<another>, in another engine: it writes the state at once
to step_00000004, as it stands in the new engine, and runs the other four steps.
Used by: tests/integration/test_other_ranks.py.
"""

import sys
from pathlib import Path
from typing import Any

import torch

from disentangled.trainer.assemble import build_training
from disentangled.trainer.distributed import leave_ranks
from disentangled.trainer.interrupt import Interrupt
from disentangled.trainer.loop import train
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.saving import save_now
from tests.trainer.tiny_run import tiny_config

STEPS, HALF = 8, 4
BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
ENGINES: dict[str, dict[str, Any]] = {
    "stage_0": {"zero_optimization": {"stage": 0}},
    "stage_1": {"zero_optimization": {"stage": 1}},
    "stage_2": {"zero_optimization": {"stage": 2}},
    "stage_3": {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}},
    "stage_1_bf16": BF16 | {"zero_optimization": {"stage": 1}},
    "stage_3_bf16": BF16 | {"zero_optimization": {"stage": 3}},
}


# each kind of engine is left and entered, by one of another kind where there is one
CHANGES = (
    ("stage_0", "stage_1"), ("stage_0", "stage_3"), ("stage_1", "stage_3"), ("stage_2", "stage_1"),
    ("stage_2", "stage_2"), ("stage_3", "stage_0"), ("stage_3", "stage_2"), ("stage_3", "stage_3"),
    ("stage_1_bf16", "stage_3_bf16"), ("stage_3_bf16", "stage_1_bf16"), ("stage_3_bf16", "stage_2"),
)  # fmt: skip


def run_config(shards: Path, run_dir: Path) -> RunConfig:
    """Eight rows a step, which one, two and four ranks divide."""
    return tiny_config(
        shards, f"run.dir={run_dir}", f"schedule.total_steps={STEPS}", f"checkpoint.every_steps={HALF}",
        "batch.micro_sequences=2", "log.every_steps=1", "log.tensorboard=false", "evaluate.num_sequences=8",
        "model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1",
    )  # fmt: skip


def main(mode: str, shards: Path, folder: Path) -> None:
    """Run all; called by each rank."""
    torch.set_num_threads(1)
    if mode == "whole":
        for name, ds_config in ENGINES.items():
            train(build_training(run_config(shards, folder / name), ds_config), Interrupt())
    else:
        for source, target in CHANGES:
            training = build_training(run_config(shards, folder / f"{source}-{target}"), ENGINES[target])
            training.saved_step = None
            save_now(training)
            train(training, Interrupt())
    leave_ranks()


if __name__ == "__main__":
    chosen_mode, chosen_shards, chosen_folder = (word for word in sys.argv[1:] if not word.startswith("--"))
    main(chosen_mode, Path(chosen_shards), Path(chosen_folder))
