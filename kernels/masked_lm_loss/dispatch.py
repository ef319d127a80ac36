"""Which implementation a call gets: "triton" where the fused kernels can run, else "torch", said once.

Used by: op.py. Tested by: tests/kernels/test_masked_lm_arguments.py.
Not here: what a machine must have (disentangled_attention/dispatch.py, which asks the same of it).
"""

import torch

from disentangled.kernels.disentangled_attention.dispatch import (
    IMPLEMENTATIONS,
    IS_INTERPRETED,
    TRITON_DTYPES,
    machine_obstacle,
    say_once,
)


def choose_implementation(asked: str | None, device: torch.device, dtype: torch.dtype) -> str:
    """One of IMPLEMENTATIONS; `asked` None leaves the choice to the machine and the dtype of hidden."""
    if asked is None:
        obstacle = machine_obstacle(device, allow_interpreter=False) or _dtype_obstacle(dtype)
        chosen = "triton" if obstacle is None else "torch"
        if not torch.compiler.is_compiling():
            say_once("masked_lm_loss", chosen, obstacle, device.type)
        return chosen
    if asked not in IMPLEMENTATIONS:
        raise ValueError(f"implementation {asked!r} is unknown: give one of {', '.join(IMPLEMENTATIONS)}")
    if asked == "triton":
        obstacle = machine_obstacle(device, allow_interpreter=True)
        if obstacle is None and dtype == torch.bfloat16 and IS_INTERPRETED:
            obstacle = "Triton's interpreter multiplies bfloat16 wrongly"
        if obstacle is not None:
            raise RuntimeError(f"implementation 'triton' cannot run here: {obstacle}; use 'torch'")
        obstacle = _dtype_obstacle(dtype)
        if obstacle is not None:
            raise ValueError(f"implementation 'triton' cannot take this: {obstacle}; use 'torch'")
    return asked


def _dtype_obstacle(dtype: torch.dtype) -> str | None:
    if dtype not in TRITON_DTYPES:
        return f"hidden is {dtype}, and it takes float16, bfloat16 and float32"
    return None
