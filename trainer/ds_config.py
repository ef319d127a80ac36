"""The DeepSpeed JSON: engine mechanics only, checked, and merged with what the recipe decides.

What: a ds_config owns how the engine runs (ZeRO stage, precision, buckets, offload, communication). What a recipe owns
(batch sizes, learning rates, clipping) is written into the merged config from the recipe; found in the JSON it is an
error that says where it belongs.
Used by: trainer/engine.py. Tested by tests/trainer/test_ds_config.py.
"""

import json
from pathlib import Path
from typing import Any

from disentangled.trainer.run_config import check_known

DS_CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
RECIPE_OWNED = {
    "train_batch_size": "batch.global_sequences",
    "train_micro_batch_size_per_gpu": "batch.micro_sequences",
    "gradient_accumulation_steps": "batch.global_sequences and batch.micro_sequences",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer.*",
    "scheduler": "schedule.*",
    "steps_per_print": "log.every_steps",
    "tensorboard": "log.tensorboard",
}
ENGINE_OWNED = {
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "bf16",
    "fp16",
    "torch_autocast",
    "data_types",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "activation_checkpointing",
    "aio",
    "checkpoint",
    "compile",
    "seq_parallel_communication_data_type",
}


def load_ds_config(path: str | Path) -> dict[str, Any]:
    """Read a ds_config by path or by the name of a shipped one.

    Raises:
        ValueError: no such file, not JSON, a key that a recipe owns, an unknown key (the nearest is named).
    """
    found = _find(path)
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"ds_config {found} is not valid JSON: {error}") from error
    for key in config:
        if key in RECIPE_OWNED:
            raise ValueError(f"ds_config {found} holds {key!r}, which the recipe owns: set {RECIPE_OWNED[key]} there")
        check_known(key, ENGINE_OWNED, f"ds_config {found}")
    return config


def merge_ds_config(
    ds_config: dict[str, Any], *, micro_sequences: int, accumulation: int, gradient_clipping: float
) -> dict[str, Any]:
    """The DeepSpeed config of one engine: the JSON, what the recipe decides, and every default that we rely on."""
    return {
        "train_micro_batch_size_per_gpu": micro_sequences,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # our AdamW is torch's: no op to compile
        "steps_per_print": 1 << 60,  # we log ourselves
        "wall_clock_breakdown": False,
    } | ds_config


def precision_of(ds_config: dict[str, Any]) -> str:
    """`bf16`, `fp16`, `autocast` or `fp32`: what the forward pass computes in."""
    for name in ("bf16", "fp16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "autocast" if ds_config.get("torch_autocast", {}).get("enabled") else "fp32"


def _find(path: str | Path) -> Path:
    for candidate in (Path(path), DS_CONFIGS / Path(path).name, DS_CONFIGS / f"{Path(path).name}.json"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(found.stem for found in DS_CONFIGS.glob("*.json")))
    raise ValueError(f"ds_config {path} does not exist: give a file, or one of {shipped}")
