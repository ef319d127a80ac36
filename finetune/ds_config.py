"""A DeepSpeed JSON as transformers' Trainer takes it: engine mechanics from ds_configs/, all else from the options.

Precision is the JSON's: `bf16` or `fp16` there are the run's. What the Trainer owns (batch sizes, clipping, optimizer,
schedule) is written in as "auto"; found in the JSON it is an error. `zero0_autocast` cannot be used: the Trainer
has an autocast of its own and does not know DeepSpeed's.
Used by: run_task.py. Tested by tests/finetune/test_ds_config.py.
Not here: DeepSpeed itself, which only trainer/ imports; transformers loads it.
"""

import json
from pathlib import Path
from typing import Any

import torch

DS_CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
FROM_OPTIONS = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
)
NEVER_GIVEN = ("optimizer", "scheduler", "activation_checkpointing", "amp")
# as trainer/ds_config.py has them: sums in fp32, and any optimizer of torch's on its own
ENGINE_DEFAULTS: dict[str, Any] = {
    "communication_data_type": "fp32",
    "data_types": {"grad_accum_dtype": "fp32"},
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": 1 << 60,  # we log ourselves
}


def load_ds_config(name: str, processes: int) -> dict[str, Any]:
    """The JSON for TrainingArguments.

    Args:
        name: of a file of ds_configs/, or a path.
        processes: of the whole launch.

    Raises:
        ValueError: no such file, not JSON, a key that belongs to the options, or what cannot run here.
    """
    path = _find(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"ds_config {path} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"ds_config {path} holds no JSON object: write {{...}} around its keys")
    for key in (*FROM_OPTIONS, *NEVER_GIVEN):
        if key in config:
            raise ValueError(f"ds_config {path}: {key} belongs to this command's options: remove it from the file")
    if config.get("torch_autocast", {}).get("enabled"):
        raise ValueError(
            f"ds_config {path}: transformers' Trainer does not know torch_autocast: use zero1_bf16 or zero2_bf16"
        )
    if find_precision(config) == "fp16" and not torch.accelerator.is_available():
        raise ValueError(f"ds_config {path}: fp16 needs a GPU: use zero2_bf16")
    zero = config.get("zero_optimization", {})
    secondary = zero.get("zero_hpz_partition_size", 1)
    if processes % secondary:
        raise ValueError(
            f"ds_config {path}: zero_hpz_partition_size is {secondary}, and {processes} processes are no multiple of it"
        )
    merged = ENGINE_DEFAULTS | dict.fromkeys(FROM_OPTIONS, "auto") | config
    if zero.get("stage") == 3:
        merged["zero_optimization"] = zero | {"stage3_gather_16bit_weights_on_model_save": True}
    if config.get("bf16", {}).get("enabled"):
        # without it stage 1 adds earlier micro-batches' gradients again
        merged["bf16"] = {"immediate_grad_update": True} | config["bf16"]
    return merged


def find_precision(config: dict[str, Any]) -> str | None:
    """`bf16` or `fp16` where the JSON turns one on, else None."""
    return next((name for name in ("bf16", "fp16") if config.get(name, {}).get("enabled")), None)


def _find(name: str) -> Path:
    for path in (Path(name), DS_CONFIGS / f"{name}.json"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
    raise ValueError(f"ds_config {name!r} is no file and none of {known}")
