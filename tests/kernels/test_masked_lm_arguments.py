"""What masked_lm_loss refuses, in words, and which implementation a call gets."""

import logging
from types import SimpleNamespace

import pytest
import torch

from disentangled.kernels.disentangled_attention import dispatch as machine
from disentangled.kernels.masked_lm_loss import dispatch
from disentangled.kernels.masked_lm_loss.dispatch import choose_implementation
from tests.kernels.masked_lm_case import masked_lm_case

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
HIDDEN, TABLE, BIAS = masked_lm_case(5, 300).tensors
LABELS = masked_lm_case(5, 300).labels


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hidden": HIDDEN.long()}, r"^hidden is torch\.int64: give float16, "),
        ({"hidden": HIDDEN[:, :3]}, r"^hidden \[5, 3\] and table \[300, 16\] do not fit: give \[M, D\] and \[V, D\]"),
        ({"table": TABLE[:0], "bias": BIAS[:0]}, r"with at least one id$"),
        ({"bias": BIAS[:9]}, r"^bias is torch\.float32 \[9\]: give a number for each id"),
        ({"bias": BIAS.half()}, r"^bias is torch\.float16 \[300\]: .* in its dtype torch\.float32$"),
        ({"bias": BIAS.to("meta")}, r"^bias is on meta and hidden on cpu: move it there$"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_lm_case(5, 300).with_tensors(**tensors).call(None)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:4], r"^labels are torch\.int64 \[4\]: give one int64 id for each of 5 rows$"),
        (LABELS.int(), r"^labels are torch\.int32 \[5\]: "),
        (LABELS * 0 + 300, r"^label 300 is not an id of a table of 300: give a larger table$"),
    ],
)
def test_labels_that_do_not_fit_are_named(labels: torch.Tensor, message: str) -> None:
    case = masked_lm_case(5, 300)
    object.__setattr__(case, "labels", labels)
    with pytest.raises(ValueError, match=message):
        case.call(None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.0}, r"^temperature is 0\.0: give a positive number, 1 draws from the softmax itself$"),
        ({"temperature": float("nan")}, r"^temperature is nan: "),
        (
            {"sample": torch.zeros(4, dtype=torch.int64)},
            r"^draw\.sample is torch\.int64 \[4\]: give int64 \[M\] =",
        ),
        ({"token": torch.zeros(5)}, r"^draw\.token is torch\.float32 \[5\]: "),
        ({"banned": torch.zeros(299, dtype=torch.bool)}, r"^draw\.banned is torch\.bool \[299\]: give bool \[V\]"),
        ({"banned": torch.ones(300, dtype=torch.bool)}, r"^all 300 ids are banned: leave one that can be drawn$"),
    ],
)
def test_draws_that_do_not_fit_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masked_lm_case(5, 300).with_draw(**changes).call(None)


def test_a_cpu_gets_torch_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    dispatch.say_once.cache_clear()
    with caplog.at_level(logging.INFO, "disentangled"):
        assert [choose_implementation(None, CPU, torch.float32) for _ in range(3)] == ["torch"] * 3
    (record,) = caplog.records
    assert record.getMessage().startswith("masked_lm_loss runs as 'torch' on cpu: ")
    dispatch.say_once.cache_clear()


def test_a_gpu_gets_triton_but_not_for_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(major=9, minor=0, name="NVIDIA Pretender")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
    monkeypatch.setattr(machine, "HAS_TRITON", True)
    monkeypatch.setattr(machine, "IS_INTERPRETED", False)
    assert choose_implementation(None, GPU, torch.bfloat16) == "triton"
    assert choose_implementation(None, GPU, torch.float64) == "torch"
    with pytest.raises(ValueError, match=r"^implementation 'triton' cannot take this: hidden is torch\.float64"):
        choose_implementation("triton", GPU, torch.float64)


def test_unknown_and_impossible_implementations_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"^implementation 'fast' is unknown: give one of reference, torch, triton$"):
        choose_implementation("fast", CPU, torch.float32)
    monkeypatch.setattr(machine, "IS_INTERPRETED", False)
    with pytest.raises(RuntimeError, match=r"^implementation 'triton' cannot run here: .*; use 'torch'$"):
        choose_implementation("triton", CPU, torch.float32)
