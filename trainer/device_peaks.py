"""Peak arithmetic rates of known GPUs, for the model FLOP/s utilization (MFU) of a run.

What: dense TFLOP/s (vendors print twice as much, "with sparsity") by the name that torch gives the device. A device
that is not listed has no peak and its runs no MFU: none is guessed.
Sources: NVIDIA's data sheets (V100 2020, T4 2019, A10 2021, A100 2021, L4 2023, L40S 2023, H100 2023, H100 NVL 2024,
H200 2024), NVIDIA's HGX page for the B200 (2025), AMD's data sheet of the MI300X (2023).
Used by: trainer/speedometer.py, trainer/network_plan.py. Tested by tests/trainer/test_device_peaks.py.
"""

import torch

TERA = 1e12
# part of the device's name: (16 bits on tensor cores with fp32 sums, fp32 without tensor cores); the first that fits
PEAK_TFLOPS = {
    "B200": (2250.0, None),
    "GH200": (989.5, 67.0),
    "H200 NVL": (835.5, 60.0),
    "H200": (989.5, 67.0),
    "H100 NVL": (835.5, 60.0),
    "H100 PCIe": (756.5, 51.0),
    "H100": (989.5, 67.0),
    "A100": (312.0, 19.5),
    "L40S": (362.05, 91.6),
    "L4": (121.0, 30.3),
    "A10": (125.0, 31.2),
    "T4": (65.0, 8.1),
    "V100-SXM2": (125.0, 15.7),
    "V100-PCIE": (112.0, 14.0),
    "MI300X": (1307.4, 163.4),
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak FLOP/s of one device; None where it is not known.

    Args:
        device_name: as torch.cuda.get_device_name gives it.
        precision: `fp32`, or any of 16 bits.
    """
    # whole words: "L4" is not "L40", "A10" is not "A100"; GPU memory and form factor are joined by "-"
    words = f" {device_name.replace('-', ' ')} "
    for name, (half, full) in PEAK_TFLOPS.items():
        if f" {name.replace('-', ' ')} " in words:
            tflops = full if precision == "fp32" else half
            return None if tflops is None else tflops * TERA
    return None


def peak_of_device(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of a device of this machine; None for CPUs, unknown GPUs, and fp32 that is not computed as such."""
    if device.type != "cuda" or (precision == "fp32" and torch.get_float32_matmul_precision() != "highest"):
        return None
    return peak_flops(torch.cuda.get_device_name(device), precision)
