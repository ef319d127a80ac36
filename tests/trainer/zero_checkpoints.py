"""Two ranks write checkpoints of every ZeRO stage: python -m tests.trainer.zero_checkpoints SHARDS FOLDER.

What: for each entry of ENGINES a run folder FOLDER/<name> as a training run leaves it, after no step, and beside its
checkpoint known_weights.pt: both models' state dicts as they were set into the fp32 master weights. At bf16 the
module's own weights stay as initialized, so who exports those is found out. FOLDER/trained is a run of three steps.
Used by: tests/trainer/test_export.py.
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor, nn

from disentangled.trainer.assemble import build_training
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.engine import ModelEngine
from disentangled.trainer.interrupt import Interrupt
from disentangled.trainer.loop import train
from disentangled.trainer.run_config import RunConfig, load_run_config
from disentangled.trainer.saving import save_now

BF16 = {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
ENGINES: dict[str, dict[str, Any]] = {
    "stage0_fp32": {"zero_optimization": {"stage": 0}},
    "stage1_fp32": {"zero_optimization": {"stage": 1}},
    "stage2_bf16": BF16 | {"zero_optimization": {"stage": 2, "overlap_comm": False}},
    "stage3_bf16": BF16 | {"zero_optimization": {"stage": 3}},
}
TINY_SIZES = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "generator_num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 48, "max_position_embeddings": 128, "position_buckets": 16},
}
WORLD_SIZE = 2


def tiny_run_config(shards: Path, run_dir: Path, *overrides: str) -> RunConfig:
    """A run that starts in a moment."""
    sizes = [f"model.{key}={value}" for key, value in TINY_SIZES.items()]
    batch = ["batch.global_sequences=4", "batch.micro_sequences=2", "log.tensorboard=false"]
    return load_run_config("tiny", [*sizes, *batch, f"data.shards={shards}", f"run.dir={run_dir}", *overrides])


def set_known_weights(engine: ModelEngine, zero_stage: int, seed: int) -> dict[str, Tensor]:
    """Put random values into an engine's fp32 weights, the same on all ranks, and return them by name."""
    generator = torch.Generator().manual_seed(seed)
    known = {}
    for name, parameter in engine.module.named_parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor
        known[name] = torch.randn(shape, generator=generator) * 0.1
        set_fp32_weight(parameter, known[name], zero_stage)
    return known


def set_fp32_weight(parameter: nn.Parameter, values: Tensor, zero_stage: int) -> None:
    """Write one parameter's fp32 weight, or this rank's part of it."""
    if zero_stage == 0:
        parameter.data.copy_(values)
    elif zero_stage < 3:
        safe_set_full_fp32_param(parameter, values)
    else:  # DeepSpeed's setter of whole tensors fails where the ranks do not divide the size
        part = parameter.ds_tensor.numel()
        padded = F.pad(values.flatten(), (0, part * WORLD_SIZE - values.numel()))
        safe_set_local_fp32_param(parameter, padded.view(WORLD_SIZE, part)[int(os.environ["RANK"])])


def train_three_steps(shards: Path, run_dir: Path) -> None:
    """A whole run at ZeRO-2 in bf16."""
    steps = ("schedule.total_steps=3", "schedule.warmup_steps=0", "evaluate.num_sequences=8")
    assert train(build_training(tiny_run_config(shards, run_dir, *steps), load_ds_config("zero2_bf16")), Interrupt())


def main(shards: Path, folder: Path) -> None:
    """Write all checkpoints; run by each rank."""
    train_three_steps(shards, folder / "trained")
    for name, ds_config in ENGINES.items():
        training = build_training(tiny_run_config(shards, folder / name), ds_config)
        stage = ds_config["zero_optimization"]["stage"]
        models = {"generator": training.engines.generator, "discriminator": training.engines.discriminator}
        known = {model: set_known_weights(engine, stage, seed) for seed, (model, engine) in enumerate(models.items())}
        save_now(training)
        if training.ranks.is_first:
            torch.save(known, folder / name / "known_weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
