import json
from pathlib import Path
from typing import Any

import pytest

from disentangled.trainer.ds_config import (
    DS_CONFIGS,
    ENGINE_DEFAULTS,
    SECTIONS,
    describe_engine,
    load_ds_config,
    merge_ds_config,
    precision_of,
)
from disentangled.trainer.key_owners import ENGINE_OWNED, RECIPE_OWNED
from disentangled.trainer.run_config import RunConfig, dotted_keys


def write_config(folder: Path, content: Any) -> Path:
    path = folder / "mine.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(DS_CONFIGS.glob("*.json")), ids=lambda path: path.stem)
def test_every_shipped_ds_config_loads_by_path_and_by_name(path: Path) -> None:
    assert load_ds_config(path) == load_ds_config(path.stem) == load_ds_config(f"ds_configs/{path.name}")


def test_ds_config_that_does_not_exist_is_an_error_that_lists_the_shipped(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ds_config zero9 does not exist: .*fp32_cpu.*zero2_bf16"):
        load_ds_config("zero9")


@pytest.mark.parametrize("key", RECIPE_OWNED)
def test_key_of_the_recipe_is_refused_with_its_place(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=f"mine.json holds '{key}', which the recipe owns: set .* there"):
        load_ds_config(write_config(tmp_path, {key: 1}))


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"learning_rate": 1e-4}, "optimizer.learning_rate"),
        ({"model": {"hidden_size": 3}}, "model."),
        ({"batch.micro_sequences": 3}, "batch.micro_sequences"),
        ({"checkpoint": {"every_steps": 100}}, "checkpoint.every_steps"),
    ],
)
def test_recipes_own_names_are_refused_with_their_place(tmp_path: Path, content: Any, place: str) -> None:
    with pytest.raises(ValueError, match=f"which the recipe owns.*|{place}") as fault:
        load_ds_config(write_config(tmp_path, content))
    assert place in str(fault.value)


@pytest.mark.parametrize(
    ("content", "nearest"),
    [
        ({"zero_optimisation": {"stage": 2}}, "zero_optimization"),
        ({"bf61": {}}, "bf16"),
        ({"zero_optimization": {"stag": 2}}, "stage"),
        ({"zero_optimization": {"reduce_bucket": 1}}, "reduce_bucket_size"),
        ({"bf16": {"enable": True}}, "enabled"),
        ({"data_types": {"grad_dtype": "fp32"}}, "grad_accum_dtype"),
        ({"torch_autocast": {"enable": True}}, "enabled"),
    ],
)
def test_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, content: Any, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"mine.json.* has an unknown key .*: did you mean '{nearest}'"):
        load_ds_config(write_config(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "mine.json is not valid JSON"),
        ("[1]", "mine.json holds no JSON object"),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization does not suit DeepSpeed"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}},
            "zero_optimization.offload_optimizer goes to nvme",
        ),
        ({"zero_optimization": 2}, "zero_optimization is 2: it must be an object"),
    ],
)
def test_ds_config_that_cannot_work_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_ds_config(write_config(tmp_path, content))


def test_owners_share_no_key_but_the_section_that_both_have() -> None:
    assert not ENGINE_OWNED & RECIPE_OWNED.keys()
    sections = {key.split(".")[0] for key in dotted_keys(RunConfig())}
    assert sections & ENGINE_OWNED == {"checkpoint"}


def test_merge_writes_what_the_recipe_decides_and_keeps_the_rest() -> None:
    ds_config = {"zero_optimization": {"stage": 1}, "wall_clock_breakdown": True}
    merged = merge_ds_config(ds_config, micro_sequences=4, accumulation=3, gradient_clipping=0.0)
    assert merged["train_micro_batch_size_per_gpu"] == 4
    assert merged["gradient_accumulation_steps"] == 3
    assert merged["gradient_clipping"] == 0.0  # DeepSpeed's own default is 1.0
    assert merged["zero_optimization"] == ENGINE_DEFAULTS["zero_optimization"] | {"stage": 1}
    assert merged["wall_clock_breakdown"] is True
    assert "wall_clock_breakdown" in ds_config and "gradient_clipping" not in ds_config


def test_merge_writes_out_what_results_rest_on() -> None:
    merged = merge_ds_config({"bf16": {"enabled": True}}, micro_sequences=4, accumulation=3, gradient_clipping=0.0)
    assert merged["data_types"] == {"grad_accum_dtype": "fp32"} and merged["communication_data_type"] == "fp32"
    assert merged["bf16"]["enabled"] is True and merged["bf16"]["check_grad_overflow"] is True
    assert merged["torch_autocast"]["lower_precision_safe_modules"] == []
    assert ENGINE_DEFAULTS["bf16"]["enabled"] is False


def test_merge_lets_the_file_have_its_way() -> None:
    ds_config = {"data_types": {"grad_accum_dtype": "bf16"}, "communication_data_type": "bf16", "bf16": {}}
    merged = merge_ds_config(ds_config, micro_sequences=4, accumulation=3, gradient_clipping=0.0)
    assert merged["data_types"] == {"grad_accum_dtype": "bf16"} and merged["communication_data_type"] == "bf16"


@pytest.mark.parametrize("name", SECTIONS)
def test_defaults_written_out_are_deepspeeds(name: str) -> None:
    # a new version that moves one is noticed here
    ours = {"bf16": {"immediate_grad_update": True}}.get(name, {})
    theirs = SECTIONS[name]().model_dump()
    assert {key: theirs[key] for key in ENGINE_DEFAULTS[name]} | ours == ENGINE_DEFAULTS[name]
    assert all(theirs[key] != value for key, value in ours.items())


@pytest.mark.parametrize(
    ("ds_config", "precision", "words"),
    [
        ({}, "fp32", "ZeRO stage 0 in fp32"),
        ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "bf16", "ZeRO stage 2 in bf16"),
        ({"bf16": {"enabled": False}, "fp16": {"enabled": True}}, "fp16", "ZeRO stage 0 in fp16"),
        ({"torch_autocast": {"enabled": True}}, "autocast", "ZeRO stage 0 in autocast"),
    ],
)
def test_precision_is_what_the_ds_config_says(ds_config: dict[str, Any], precision: str, words: str) -> None:
    assert precision_of(ds_config) == precision
    assert describe_engine(ds_config) == words
