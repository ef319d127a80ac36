"""DeepSpeed's JSON for the Trainer: shipped ones are completed, what belongs elsewhere or cannot run is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.finetune.ds_config import DS_CONFIGS, find_precision, load_ds_config

SHIPPED = sorted(path.stem for path in DS_CONFIGS.glob("*.json"))
REFUSED = {"zero0_autocast": "does not know torch_autocast"}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configs_are_completed_or_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            load_ds_config(name, 8)
        return
    merged, shipped = load_ds_config(name, 8), json.loads((DS_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    assert merged["train_batch_size"] == merged["gradient_clipping"] == "auto"
    assert merged["data_types"] == {"grad_accum_dtype": "fp32"}
    assert merged["zero_optimization"].items() >= shipped["zero_optimization"].items()
    is_stage_3 = shipped["zero_optimization"]["stage"] == 3
    assert merged["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save", False) == is_stage_3
    assert find_precision(merged) == find_precision(shipped)


def test_fp16_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(ValueError, match="fp16 needs a GPU"):
        load_ds_config("zero2_fp16", 2)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"train_batch_size": 8}, "train_batch_size belongs to this command's options"),
        ({"optimizer": {"type": "Adam"}}, "optimizer belongs to this command's options"),
        ([], "holds no JSON object"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}, "2 processes are no multiple of it"),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path: Path, content: Any, fault: str) -> None:
    path = tmp_path / "engine.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=fault):
        load_ds_config(str(path), 2)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="is no file and none of fp32_cpu, zero0_autocast"):
        load_ds_config("zero5", 2)
