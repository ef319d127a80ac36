"""The op `dropout`, and which implementation a call gets: "triton" on GPUs that can, else "torch", said once.

Both give the same bits (counter_rng.py has the rule), so the choice changes nothing but time.
Used by: model/noise.py, kernels/residual_norm. Tested by: tests/kernels/test_hidden_dropout.py.
Not here: the kernel (fused.py), plain torch (counter_rng.dropout).
"""

import torch
from torch import Tensor

from disentangled.kernels import counter_rng
from disentangled.kernels.counter_rng import MAX_SITES, drop_threshold, signed_seed
from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.disentangled_attention.dispatch import (
    IS_INTERPRETED,
    TRITON_DTYPES,
    machine_obstacle,
    say_once,
)

IMPLEMENTATIONS = ("torch", "triton")


def dropout(
    x: Tensor,
    probability: float,
    *,
    seed: int,
    stream: int,
    layer: int,
    site: int,
    sample: Tensor,
    token: Tensor,
    implementation: str | None = None,
) -> Tensor:
    """Dropout of hidden activations: whether a value is kept follows from its place alone, never from the batch.

    Formula: out = x * keep / P(keep), with keep by (seed, stream, layer, site, sample, token, feature) as
    counter_rng.keep_mask decides.

    Args:
        x: [..., F].
        sample, token: int64 [...], the row's global sample index and the index in the row.
        site: tells several dropouts of one layer apart, 0 to 255.
        implementation: "torch" or "triton"; None chooses. All give the same bits.

    Gradients: to x, by the same decisions drawn again; deterministic. Numerics: the product is float32, rounded once.
    Memory: triton keeps nothing and moves x once in, once out; torch makes integers of some 200 bytes a value.

    Raises:
        ValueError: a probability outside of [0, 1), a site, stream or layer outside of 0 to 255, an unknown
            implementation, a dtype that triton does not take.
        RuntimeError: "triton" was asked for where it cannot run.
    """
    if drop_threshold(probability) == 0:
        return x
    check_keys(stream, layer, site)
    if choose_implementation(implementation, x.device, x.dtype) == "torch":
        return counter_rng.dropout(
            x, probability, seed=seed, stream=stream, layer=layer, site=site, sample=sample, token=token
        )
    operator = torch.ops.disentangled.hidden_dropout if torch.compiler.is_compiling() else load_kernel()
    dropped: Tensor = operator(x, probability, signed_seed(seed), int(stream), layer, sample, token, site << 24)
    return dropped


def check_keys(stream: int, layer: int, site: int) -> None:
    """Raise ValueError for numbers that the counter has no room for."""
    for name, value, most in (("site", site, MAX_SITES), ("stream", stream, 1 << 8), ("layer", layer, 1 << 8)):
        if not 0 <= int(value) < most:  # torch 2.11 compiles no comparison of an enum
            raise ValueError(f"dropout {name} {int(value)} is outside 0..{most - 1}: the counter has 8 bits for it")


def choose_implementation(
    asked: str | None,
    device: torch.device,
    dtype: torch.dtype,
    op: str = "hidden_dropout",
    unfit: str | None = None,
) -> str:
    """One of IMPLEMENTATIONS; `asked` None leaves the choice to the machine and the input.

    unfit: what else about the input triton cannot take.
    """
    if asked == "torch":
        return asked
    if asked not in (None, "triton"):
        raise ValueError(f"implementation {asked!r} is unknown: give one of {', '.join(IMPLEMENTATIONS)}")
    obstacle = machine_obstacle(device, allow_interpreter=asked is not None)
    if dtype not in TRITON_DTYPES:
        unfit = f"x is {dtype}, and it takes float16, bfloat16 and float32"
    if asked is None:
        chosen = "triton" if obstacle is None and unfit is None else "torch"
        if not torch.compiler.is_compiling():
            say_once(op, chosen, obstacle or unfit, device.type)
        return chosen
    if obstacle is None and dtype == torch.bfloat16 and IS_INTERPRETED:
        obstacle = "Triton's interpreter cuts bfloat16 off instead of rounding it"
    if obstacle is not None:
        raise RuntimeError(f"implementation 'triton' cannot run here: {obstacle}; use 'torch'")
    if unfit is not None:
        raise ValueError(f"implementation 'triton' cannot take this: {unfit}; use 'torch'")
    return asked


def load_kernel() -> DirectOperator:
    """Define the operator disentangled::hidden_dropout; what torch.compile traces cannot import it itself."""
    from disentangled.kernels.hidden_dropout import fused

    return fused.hidden_dropout
