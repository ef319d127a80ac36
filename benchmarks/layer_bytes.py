"""Bytes that a layer moves besides attention, by count: `python -m benchmarks.layer_bytes`. Needs no GPU.

What: forward and backward of a layer's projections, residual norms and feed-forward on tensors without memory, for a
model in bfloat16 and for one in float32 under autocast; each operator that torch would launch reads its tensors and
writes its results once. For each the layer as it is in plain torch, with the fused dropout only, and with the fused
residual norm. Products are counted apart: theirs is time of the tensor cores.
Used for: docs/log.md, kernels/residual_norm/README.md. Tested by: tests/benchmarks/test_layer_bytes.py.
Not here: attention (benchmarks/traffic.py); time; what stays in a cache.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disentangled.kernels.hidden_dropout import dropout
from disentangled.kernels.hidden_dropout import op as hidden_op
from disentangled.kernels.residual_norm import op as norm_op
from disentangled.kernels.residual_norm import residual_norm
from disentangled.model import layer as layer_module
from disentangled.model.config import DebertaConfig
from disentangled.model.layer import Layer
from disentangled.trainer.run_config import load_run_config

VIEWS = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "expand", "lift_fresh", "new_empty",
    "permute", "select", "slice", "split", "squeeze", "t", "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip
PRODUCTS = {"mm", "addmm"}
KEYS = {"seed": 1, "stream": 3, "layer": 5, "site": 1}
PROBABILITY = 0.1
NORMS = ("plain torch", "fused dropout", "fused norm")
PRECISIONS = ("bfloat16", "autocast")
MIB, MOST_NAMED = 1 << 20, 8


class AsAutocast(TorchFunctionMode):
    """The two rules of torch.autocast on a GPU that a layer meets: tensors without memory have no autocast."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        cast = {F.linear: torch.bfloat16, F.layer_norm: torch.float32}.get(function)
        if cast is not None:
            arguments = [x.to(cast) if isinstance(x, Tensor) else x for x in arguments]
        return function(*arguments, **(options or {}))


class Bytes(TorchDispatchMode):
    """Counts what each operator reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        name = function._schema.name.split("::")[1]
        if name not in VIEWS:
            tensors = (x for x in tree_leaves((arguments, options, result)) if isinstance(x, Tensor))
            self.counts[name] += sum(x.numel() * x.element_size() for x in tensors)
        return result


def plain_norm(*inputs: Tensor, implementation: str, places: Tensor) -> tuple[Tensor, Tensor]:
    """A residual norm of torch's operators around one of our dropouts, its result in both types."""
    x, residual, weight, bias = inputs
    dropped = dropout(x, PROBABILITY, **KEYS, sample=places, token=places, implementation=implementation)
    out = F.layer_norm(dropped + residual, weight.shape, weight, bias, 1e-7)
    return out, out.to(torch.bfloat16)


def norms(places: Tensor) -> dict[str, Callable[..., tuple[Tensor, Tensor]]]:
    """What may stand for the residual norm."""
    return {
        "plain torch": partial(plain_norm, implementation="torch", places=places),
        "fused dropout": partial(plain_norm, implementation="triton", places=places),
        "fused norm": lambda *inputs: residual_norm(
            *inputs, 1e-7, PROBABILITY, **KEYS, sample=places, token=places, implementation="triton"
        ),
    }


@contextmanager
def standing_in(norm: Callable[..., tuple[Tensor, Tensor]], is_autocast: bool) -> Iterator[None]:
    """Within it layers end with `norm`, and kernels are taken to run on tensors without memory."""
    with (
        patch.object(hidden_op, "machine_obstacle", lambda *_, **__: None),
        patch.object(hidden_op, "IS_INTERPRETED", False),
        patch.object(norm_op, "product_dtype", lambda dtype, device: torch.bfloat16 if is_autocast else dtype),
        patch.object(layer_module, "hidden_dropout_keys", lambda *_: {}),
        patch.object(layer_module, "residual_norm", lambda *inputs: norm(*inputs[:4])),
    ):
        yield


def count(config: DebertaConfig, num_tokens: int, norm: str, precision: str) -> Counter[str]:
    """Bytes of a layer's forward and backward, by operator; precision: of PRECISIONS."""
    is_autocast = precision == "autocast"
    with torch.device("meta"):
        layer = Layer(config)
        places = torch.empty(num_tokens, dtype=torch.int64)
        context = torch.empty(num_tokens, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    if not is_autocast:
        layer.bfloat16()
    # the layer before ended with such a norm, too
    operand = stream = torch.empty_like(context).requires_grad_()
    if is_autocast:
        stream = torch.empty_like(context, dtype=torch.float32).requires_grad_()
    attention = layer.attention.self
    with standing_in(norms(places)[norm], is_autocast), Bytes() as found:
        with AsAutocast() if is_autocast else nullcontext():
            outputs = [project(operand) for project in (attention.query_proj, attention.key_proj, attention.value_proj)]
            outputs += layer.finish(context, stream, None, None, 0)[: 1 + is_autocast]  # type: ignore[arg-type]
        torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    return +found.counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.layer_bytes", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base", help="whose discriminator's layer (%(default)s)")
    parser.add_argument("--tokens", type=int, default=16_384, help="of a micro-batch (%(default)s)")
    options = parser.parse_args(arguments)
    config = load_run_config(options.recipe).model.discriminator(1)
    for precision in PRECISIONS:
        for norm in NORMS:
            counts = count(config, options.tokens, norm, precision)
            products = sum(counts.pop(name, 0) for name in PRODUCTS)
            parts = ", ".join(f"{name} {size / MIB:,.0f}" for name, size in counts.most_common(MOST_NAMED))
            print(
                f"{precision}, {norm}: {sum(counts.values()) / MIB:,.0f} MiB, products {products / MIB:,.0f}: {parts}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
