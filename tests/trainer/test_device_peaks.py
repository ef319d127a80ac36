import pytest
import torch

from disentangled.trainer.device_peaks import peak_flops, peak_of_device


@pytest.mark.parametrize(
    ("name", "half", "full"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12, 67e12),
        ("NVIDIA H100 PCIe", 756.5e12, 51e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H200", 989.5e12, 67e12),
        ("NVIDIA H200 NVL", 835.5e12, 60e12),
        ("NVIDIA GH200 480GB", 989.5e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A10", 125e12, 31.2e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA L40S", 362.05e12, 91.6e12),
        ("Tesla V100-SXM2-32GB", 125e12, 15.7e12),
        ("AMD Instinct MI300X", 1307.4e12, 163.4e12),
    ],
)
def test_known_devices_have_their_data_sheets_peak(name: str, half: float, full: float) -> None:
    assert peak_flops(name, "bf16") == peak_flops(name, "autocast") == pytest.approx(half)
    assert peak_flops(name, "fp32") == pytest.approx(full)


@pytest.mark.parametrize("name", ["NVIDIA L40", "NVIDIA A10G", "NVIDIA A1000", "NVIDIA GeForce RTX 4060", "", "cpu"])
def test_a_device_that_is_not_listed_has_none(name: str) -> None:
    assert peak_flops(name, "bf16") is None


def test_a_cpu_has_none() -> None:
    assert peak_of_device(torch.device("cpu"), "fp32") is None


def test_fp32_that_is_not_computed_as_such_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    device = torch.device("cuda", 0)
    assert peak_of_device(device, "fp32") == 19.5e12
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_of_device(device, "fp32") is None
    assert peak_of_device(device, "bf16") == 312e12
