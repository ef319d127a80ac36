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
        if key in SECTIONS:
            check_section(key, value, f"ds_config {found}")
    return config


def check_section(name: str, content: Any, place: str) -> None:
    """Raise ValueError for a section that DeepSpeed would refuse, before anything is written."""
    if not isinstance(content, dict):
        raise ValueError(f"{place}: {name} is {content!r}: it must be an object of keys")
    kind = SECTIONS[name]
    fields = kind.model_fields
    names = [alias for field, entry in fields.items() for alias in (field, entry.alias) if alias]
    for key in content:
        check_known(key, names, f"{place}: {name}")
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
