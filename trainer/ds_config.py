"""The DeepSpeed JSON: engine mechanics only, checked, and merged with what the recipe decides.

What: a ds_config owns how the engine runs (ZeRO stage, precision, buckets, offload, communication). What a recipe owns
(batch sizes, learning rates, clipping) is written into the merged config from the recipe; found in the JSON it is an
error that says where it belongs.
Used by: trainer/engine.py. Tested by tests/trainer/test_ds_config.py.
"""

import json
from pathlib import Path
from typing import Any

from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

from disentangled.trainer.key_owners import check_engine_key, check_known
from disentangled.trainer.run_config import RunConfig, dotted_keys

DS_CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
SECTIONS = {"zero_optimization": DeepSpeedZeroConfig, "bf16": DeepSpeedBF16Config, "fp16": DeepSpeedFP16Config}
# What results rest on where a ds_config says nothing: DeepSpeed 0.19.8's own defaults, written out because they have
# moved before (gradient_clipping became 1.0, bf16's overflow check came on), and some of ours.
ENGINE_DEFAULTS: dict[str, Any] = {
    "prescale_gradients": False,
    "gradient_predivide_factor": 1.0,
    "communication_data_type": "fp32",  # ours: theirs is the weights' type
    "data_types": {"grad_accum_dtype": "fp32"},  # ours: theirs is the weights' type
    "zero_allow_untested_optimizer": True,  # ours: any elementwise optimizer is tested (trainer/optim.py)
    "zero_force_ds_cpu_optimizer": False,
    "zero_optimization": {
        "stage": 0,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "round_robin_gradients": False,
        "load_from_fp32_weights": True,
        "zero_quantized_weights": False,
        "zero_quantized_nontrainable_weights": False,
        "zero_quantized_gradients": False,
    },
    "bf16": {
        "enabled": False,
        "immediate_grad_update": True,  # ours: without, stage 1 adds earlier micro-batches' gradients again
        "check_grad_overflow": True,
        "bf16_master_weights_and_grads": False,
        "bf16_optimizer_states": False,
    },
    "fp16": {
        "enabled": False,
        "auto_cast": False,
        "loss_scale": 0,  # dynamic, each engine its own
        "initial_scale_power": 16,
        "loss_scale_window": 1000,
        "hysteresis": 2,
        "consecutive_hysteresis": False,
        "min_loss_scale": 1,
        "fp16_master_weights_and_grads": False,
    },
    "torch_autocast": {
        "enabled": False,
        "dtype": "bfloat16",
        "lower_precision_safe_modules": [],  # ours: gradients of what is listed here are reduced in dtype
    },
}


def load_ds_config(path: str | Path) -> dict[str, Any]:
    """Read a ds_config by path or by the name of a shipped one.

    Raises:
        ValueError: no such file, not JSON, a key that a recipe owns, an unknown key (the nearest is named).
    """
    found = _find(path)
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:  # also what is not UTF-8
        raise ValueError(f"ds_config {found} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"ds_config {found} holds no JSON object: write {{...}} around its keys")
    recipe_keys = list(dotted_keys(RunConfig()))
    for key, value in config.items():
        for name in [key, *(f"{key}.{inner}" for inner in (value if isinstance(value, dict) else ()))]:
            check_engine_key(name, recipe_keys, f"ds_config {found}")
        if key in SECTIONS or isinstance(ENGINE_DEFAULTS.get(key), dict):
            check_section(key, value, f"ds_config {found}")
    return config


def check_section(name: str, content: Any, place: str) -> None:
    """Raise ValueError for a section that DeepSpeed would refuse, before anything is written."""
    if not isinstance(content, dict):
        raise ValueError(f"{place}: {name} is {content!r}: it must be an object of keys")
    kind = SECTIONS.get(name)
    if kind is None:
        names = list(ENGINE_DEFAULTS[name])
    else:
        names = [alias for field, entry in kind.model_fields.items() for alias in (field, entry.alias) if alias]
    for key in content:
        check_known(key, names, f"{place}: {name}")
    if kind is None:
        return
    try:
        kind(**content)
    except ValueError as error:
        raise ValueError(f"{place}: {name} does not suit DeepSpeed: {error}") from error
    for key, value in content.items():
        if key.startswith("offload_") and isinstance(value, dict) and value.get("device") == "nvme":
            raise ValueError(
                f"{place}: {name}.{key} goes to nvme, from where no checkpoint is written: take device cpu"
            )


def merge_ds_config(
    ds_config: dict[str, Any], *, micro_sequences: int, accumulation: int, gradient_clipping: float = 0.0
) -> dict[str, Any]:
    """The DeepSpeed config of one engine: the JSON, what the recipe decides, and every default that we rely on.

    gradient_clipping: DeepSpeed's own, for which the host waits; the trainer has none of it (trainer/update_guard.py).
    """
    merged: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": micro_sequences,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": gradient_clipping,
        "steps_per_print": 1 << 60,  # we log ourselves
        "wall_clock_breakdown": False,
    }
    for key, default in ENGINE_DEFAULTS.items():
        merged[key] = default | ds_config.get(key, {}) if isinstance(default, dict) else default
    return merged | {key: value for key, value in ds_config.items() if not isinstance(merged.get(key), dict)}


def precision_of(ds_config: dict[str, Any]) -> str:
    """`bf16`, `fp16`, `autocast` or `fp32`: what the forward pass computes in."""
    for name in ("bf16", "fp16"):
        if ds_config.get(name, {}).get("enabled"):
            return name
    return "autocast" if ds_config.get("torch_autocast", {}).get("enabled") else "fp32"


def reduced_dtype_of(ds_config: dict[str, Any]) -> str:
    """What gradients are sent and added up as between ranks: `fp32`, `bf16` or `fp16`."""
    return str(ds_config.get("communication_data_type", ENGINE_DEFAULTS["communication_data_type"]))


def describe_engine(ds_config: dict[str, Any]) -> str:
    """What decides the format of the engine's checkpoints, in words."""
    return f"ZeRO stage {zero_stage_of(ds_config)} in {precision_of(ds_config)}"


def zero_stage_of(ds_config: dict[str, Any]) -> int:
    """ZeRO's stage, 0 where it is not named."""
    stage: int = ds_config.get("zero_optimization", {}).get("stage", 0)
    return stage


def _find(path: str | Path) -> Path:
    for candidate in (Path(path), DS_CONFIGS / Path(path).name, DS_CONFIGS / f"{Path(path).name}.json"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(found.stem for found in DS_CONFIGS.glob("*.json")))
    raise ValueError(f"ds_config {path} does not exist: give a file, or one of {shipped}")
