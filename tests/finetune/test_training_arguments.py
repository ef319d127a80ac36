"""The Trainer's arguments: whole batches over processes and micro-batches, and the optimizer's settings."""

from pathlib import Path

import pytest
import torch

from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.training_arguments import divide_batch, make_arguments


def options(**changes: object) -> FinetuneOptions:
    return FinetuneOptions("cola", "m", Path("o"), **changes)


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "parts"), [(32, None, 1, (32, 1)), (32, None, 4, (8, 1)), (48, 6, 2, (6, 4))]
)
def test_a_batch_is_divided_without_rest(batch: int, micro: int | None, processes: int, parts: tuple[int, int]) -> None:
    assert divide_batch(options(batch_size=batch, micro_batch_size=micro), processes) == parts


@pytest.mark.parametrize(
    ("micro", "processes", "fault"),
    [(None, 3, "multiple of the 3 processes"), (5, 2, "divide a process's share of the batch, 16")],
)
def test_a_batch_with_a_rest_is_refused(micro: int | None, processes: int, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        divide_batch(options(batch_size=32, micro_batch_size=micro), processes)


def test_several_gpus_need_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="4 GPUs are visible to one process"):
        divide_batch(options(), 1)
    assert divide_batch(options(), 4) == (8, 1)


def test_settings_reach_the_trainer() -> None:
    made = make_arguments(options(adam_beta2=0.98, warmup_steps=7, seed=5, gradient_clipping=0.5), "f1", 40)
    assert (made.adam_beta1, made.adam_beta2, made.adam_epsilon, made.weight_decay) == (0.9, 0.98, 1e-6, 0.01)
    assert (made.warmup_steps, made.lr_scheduler_type, made.max_grad_norm, made.seed) == (7, "linear", 0.5, 5)
    assert (made.metric_for_best_model, made.greater_is_better, made.logging_steps) == ("eval_f1", True, 2)


def test_a_ds_config_needs_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ValueError, match="DeepSpeed needs its launcher"):
        make_arguments(options(ds_config="zero2_bf16"), "f1", 40)
