"""Which implementation an attention call gets: "triton" where the fused kernels can run, else "torch", said once.

Chosen from device, dtype and head width alone, so that a model's layers all get the same. "triton" asked for by name
where it cannot run is an error: RuntimeError for what the machine lacks, ValueError for an argument. Under Triton's
interpreter (TRITON_INTERPRET=1 before Triton is imported) it runs on any device, slowly, and only when asked for.
Used by: op.py. Tested by: tests/kernels/test_dispatch.py.
Not here: checks that hold for every implementation (arguments.py).
"""

import functools
import importlib.util
import logging
import os

import torch

IMPLEMENTATIONS = ("reference", "torch", "triton")
TRITON_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Rows are held in registers, padded to a power of two: a tile of wider heads does not fit.
MAX_HEAD_WIDTH = 128
# Wider ones in float32 run when asked for, but spill: benchmarks/resources.py.
MAX_FLOAT32_WIDTH = 64
# Tensor cores for bfloat16 and asynchronous copies come with compute capability 8.0.
MIN_CAPABILITY = (8, 0)
# Both without importing Triton, and as plain constants, which torch.compile can look at.
HAS_TRITON = importlib.util.find_spec("triton") is not None
IS_INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")

logger = logging.getLogger("disentangled")


def choose_implementation(asked: str | None, device: torch.device, dtype: torch.dtype, head_width: int) -> str:
    """One of IMPLEMENTATIONS; `asked` None leaves the choice to the machine and the arguments."""
    if asked is None:
        obstacle = machine_obstacle(device, allow_interpreter=False) or _argument_obstacle(dtype, head_width)
        if obstacle is None and dtype == torch.float32 and head_width > MAX_FLOAT32_WIDTH:
            obstacle = f"float32 heads of {head_width} do not fit the registers, those of {MAX_FLOAT32_WIDTH} do"
        chosen = "triton" if obstacle is None else "torch"
        if not torch.compiler.is_compiling():
            say_once("disentangled_attention", chosen, obstacle, device.type)
        return chosen
    if asked not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {asked!r} is unknown: give one of {', '.join(IMPLEMENTATIONS)}")
    if asked == "triton":
        obstacle = machine_obstacle(device, allow_interpreter=True)
        if obstacle is not None:
            raise RuntimeError(f"implementation 'triton' cannot run here: {obstacle}; use 'torch'")
        obstacle = _argument_obstacle(dtype, head_width)
        if obstacle is not None:
            raise ValueError(f"implementation 'triton' cannot take this: {obstacle}; use 'torch'")
        if dtype == torch.bfloat16 and IS_INTERPRETED:
            raise RuntimeError(
                "implementation 'triton' cannot run here: Triton's interpreter multiplies bfloat16 wrongly; "
                "use float32, float16 or 'torch'"
            )
    return asked


def machine_obstacle(device: torch.device, allow_interpreter: bool) -> str | None:
    """What the machine lacks for the fused kernels to run on this device; None: nothing."""
    if not HAS_TRITON:
        return "the package triton is not installed"
    if IS_INTERPRETED:
        return None if allow_interpreter else "Triton's interpreter is on (TRITON_INTERPRET), which is slow"
    if device.type != "cuda" or torch.version.hip is not None:
        return f"it needs an NVIDIA GPU, and the tensors are on {device.type}"
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < MIN_CAPABILITY:
        return (
            f"{properties.name} has compute capability {properties.major}.{properties.minor}, and "
            f"{MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]} is needed"
        )
    return None


def _argument_obstacle(dtype: torch.dtype, head_width: int) -> str | None:
    if dtype not in TRITON_DTYPES:
        return f"the tensors are {dtype}, and it takes float16, bfloat16 and float32"
    if head_width > MAX_HEAD_WIDTH:
        return f"heads are {head_width} wide, and it takes at most {MAX_HEAD_WIDTH}"
    return None


@functools.cache
def say_once(op: str, chosen: str, obstacle: str | None, device_type: str) -> None:
    """A GPU that is not made full use of is worth a warning, which Python prints; all else is for those who ask."""
    level = logging.WARNING if device_type == "cuda" and chosen != "triton" else logging.INFO
    reason = "" if obstacle is None else f": {obstacle}"
    logger.log(level, "%s runs as %r on %s%s", op, chosen, device_type, reason)
