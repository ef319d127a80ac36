"""Our kernels, compiled for a GPU and run on the machine: `python -m tests.ptx.compiled_kernels CAPABILITY CASE ...`.

What: a CASE is `name` or `name:dtype` (bfloat16 unless told). Each runs twice, forward and backward, with other chances
(machine.py); both must give the same bits, and these must keep the error rule. In bfloat16 this is the only test that
needs no GPU: Triton's interpreter multiplies bfloat16 wrongly. Exit code 1 where a case fails.
Used by: test_compiled_kernels.py, in a process of its own, because tests run with Triton's interpreter.
"""

import argparse
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
import triton
from torch import Tensor

from disentangled.kernels.disentangled_attention import AttentionDropout, attention_call, tile_sizes
from disentangled.kernels.disentangled_attention import dispatch as attention_dispatch
from disentangled.kernels.disentangled_attention import launch as attention_launch
from disentangled.kernels.hidden_dropout import dropout, fused
from disentangled.kernels.hidden_dropout import op as dropout_op
from disentangled.kernels.masked_lm_loss import dispatch as loss_dispatch
from disentangled.kernels.masked_lm_loss import launch as loss_launch
from disentangled.kernels.residual_norm import fused as norm_kernels
from tests.kernels.attention_case import AttentionCase, attention_case, cumulative_lengths
from tests.kernels.masked_lm_case import masked_lm_case
from tests.kernels.residual_norm_case import ResidualNormCase
from tests.ptx.launch import on_machine

LAUNCHERS = attention_call, attention_launch, tile_sizes, loss_launch, fused, norm_kernels
DISPATCHERS = attention_dispatch, loss_dispatch, dropout_op
LENGTHS = (5, 0, 130, 64, 1)  # of packed documents: in one tile, in none, in three
V3 = {"position_buckets": 256, "max_relative_positions": 512}

Run = Callable[[], dict[str, Tensor]]
Check = Callable[[dict[str, Tensor]], None]


def attention(
    dtype: torch.dtype, width: int = 64, packed: bool = False, masked: bool = False, dropped: bool = False,
    without: tuple[str, ...] = (), num_tokens: int = 100, batch: int = 3, **keywords: int,
) -> tuple[Run, Check]:  # fmt: skip
    """An attention call and the error rule for its results."""
    case: AttentionCase = attention_case(
        sum(LENGTHS) if packed else num_tokens, batch=None if packed else batch, heads=1, dtype=dtype,
        head_width=width, **keywords,
    ).with_tensors(**dict.fromkeys(without))  # fmt: skip
    if packed:
        starts = cumulative_lengths(*LENGTHS)
        lengths = {"max_seqlen_q": max(LENGTHS), "max_seqlen_k": max(LENGTHS)}
        case = case.with_keywords(cu_seqlens_q=starts, cu_seqlens_k=starts, **lengths)
    if masked:
        mask = torch.ones(batch, num_tokens, dtype=torch.bool)
        mask[0, num_tokens // 2 + 2 :] = False
        mask[1] = False
        mask[2, num_tokens // 3] = False  # a hole
        case = case.with_keywords(key_padding_mask=mask)
    if dropped:
        sample = torch.arange(len(LENGTHS) if packed else batch) + 2**33
        case = case.with_keywords(dropout=AttentionDropout(0.1, (1 << 63) + 5, 4, 7, sample, torch.zeros_like(sample)))
    return partial(case.run, "triton"), case.assert_results_no_worse_than_eager


def loss(dtype: torch.dtype, num_rows: int, num_ids: int, width: int) -> tuple[Run, Check]:
    """The loss with its draw, and the error rule for its results."""
    case = masked_lm_case(num_rows, num_ids, width, dtype=dtype)
    return partial(case.run, "triton"), case.assert_results_no_worse_than_eager


def hidden_dropout(dtype: torch.dtype) -> tuple[Run, Check]:
    """Dropout of hidden activations, and that it has plain torch's bits."""
    x = torch.randn(70, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    sample = torch.arange(70) * 3 + 2**34

    def run(implementation: str = "triton") -> dict[str, Tensor]:
        own = x.clone().requires_grad_()
        places = {"sample": sample, "token": sample.flip(0) % 512}
        out = dropout(own, 0.3, seed=2**63 + 5, stream=3, layer=7, site=2, **places, implementation=implementation)
        return {"output": out.detach(), "grad_x": torch.autograd.grad(out, own, x.flip(0))[0]}

    def check(results: dict[str, Tensor]) -> None:
        assert all(torch.equal(results[name], value) for name, value in run("torch").items())

    return run, check


def residual_norm(dtype: torch.dtype, width: int, mixed: bool = False) -> tuple[Run, Check]:
    """A residual norm with dropout, and the error rule; mixed: residual and weights in float32, as under autocast."""
    case = ResidualNormCase((70, width), dtype, mixed=mixed)
    return partial(case.run, "triton"), case.check


CASES: dict[str, Callable[[torch.dtype], tuple[Run, Check]]] = {
    "padded": attention,
    "masked": partial(attention, masked=True),
    "masked-dropout": partial(attention, masked=True, dropped=True),
    "packed": partial(attention, packed=True),
    "packed-dropout": partial(attention, packed=True, dropped=True),
    "far": partial(attention, num_tokens=260, batch=1, dropped=True),  # tiles past the bucket range
    "v3": partial(attention, num_tokens=200, batch=1, **V3),  # many slots, expanded by the distance
    "c2p": partial(attention, without=("rel_query",), num_tokens=200, batch=1),
    "p2c": partial(attention, without=("rel_key",), num_tokens=200, batch=1),
    "content": partial(attention, without=("rel_key", "rel_query"), num_tokens=200, batch=1),
    "width-32": partial(attention, width=32, packed=True, dropped=True),
    "width-48": partial(attention, width=48, packed=True),
    "width-128": partial(attention, width=128, packed=True, dropped=True),
    "loss": partial(loss, num_rows=70, num_ids=1000, width=64),
    "loss-odd": partial(loss, num_rows=129, num_ids=700, width=200),
    "hidden-dropout": hidden_dropout,
    "residual-norm": partial(residual_norm, width=768),
    "residual-norm-mixed": partial(residual_norm, width=200, mixed=True),
}


def check_case(name: str, dtype: torch.dtype, capability: int) -> None:
    """Run a case; AssertionError where it is wrong, AccessError and the like where a GPU would trap or worse."""
    run, check = CASES[name](dtype)
    results = []
    for seed in (1, 2):
        with on_machine(capability, seed, *LAUNCHERS):
            results.append(run())
    for result in results[0]:
        assert torch.equal(results[0][result], results[1][result]), f"{result} is the chance's: the program has a race"
    check(results[0])


def main() -> int:
    """Prints a line for each case; returns the exit code."""
    parser = argparse.ArgumentParser(prog="tests.ptx.compiled_kernels", description=__doc__.splitlines()[0])
    parser.add_argument("capability", type=int, choices=(80, 90), help="of the GPU that is compiled for")
    parser.add_argument("cases", nargs="+", metavar="name[:dtype]", help=f"of {', '.join(CASES)}")
    options = parser.parse_args()
    capability, cases = options.capability, options.cases
    if unknown := [case for case in cases if case.partition(":")[0] not in CASES]:
        parser.error(f"{unknown[0]!r} is no case: give one of {', '.join(CASES)}")
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set, so nothing is compiled: unset it")
    torch.set_num_threads(1)
    failed = 0
    for patched in [patch.object(module, "machine_obstacle", lambda *_, **__: None) for module in DISPATCHERS]:
        patched.start()
    for case in cases:
        name, _, dtype = case.partition(":")
        started = time.monotonic()
        try:
            check_case(name, getattr(torch, dtype or "bfloat16"), capability)
        except Exception:
            failed += 1
            traceback.print_exc()
            print(f"sm_{capability} {case}: failed", flush=True)
        else:
            print(f"sm_{capability} {case}: {time.monotonic() - started:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
