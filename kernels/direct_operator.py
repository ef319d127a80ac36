"""Operators of torch.library, called past torch's dispatcher where nobody looks for them there.

What: a call through the dispatcher and torch.library's autograd takes the host 0.1 to 0.3 ms before anything is
launched, and a step of `base` makes 170 of them. Plain tensors outside of torch.compile need neither: the launcher is
called, behind one autograd.Function where a gradient is asked for. Everything else meets the operator: subclasses such
as fake tensors, tracing, functorch, and modes that look at operators, as counters and selective recomputation do.
Used by: disentangled_attention/, hidden_dropout/, residual_norm/. Tested by: tests/kernels/test_direct_operator.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PLAIN_TYPES = (Tensor, nn.Parameter)


class DirectOperator:
    """An operator and the function that it calls, of the same arguments.

    Args:
        operator: what torch.library has, with the same autograd.
        launch: what it does.
        save, backward: its autograd, as torch.library.register_autograd takes it; without them its results have none,
            and the operator is called where a gradient is asked for.
    """

    def __init__(
        self,
        operator: Callable[..., Any],
        launch: Callable[..., Any],
        save: Callable[..., None] | None = None,
        backward: Callable[..., Any] | None = None,
    ) -> None:
        self._operator, self._launch = operator, launch
        self._with_gradient = operator if save is None or backward is None else make_function(launch, save, backward)

    def __call__(self, *arguments: Any) -> Any:
        """The operator's results."""
        if are_operators_seen():
            return self._operator(*arguments)
        needs_gradient = False
        for x in arguments:
            if isinstance(x, Tensor):
                if type(x) not in PLAIN_TYPES:
                    return self._operator(*arguments)
                needs_gradient |= x.requires_grad
        if needs_gradient and torch.is_grad_enabled():
            return self._with_gradient(*arguments)
        return self._launch(*arguments)


def are_operators_seen() -> bool:
    """Whether somebody wants to see, or to replace, the operators that are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


def make_function(
    launch: Callable[..., Any], save: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """`launch` with a gradient.

    Not with a setup_context of its own: for such a one torch binds the arguments to launch's signature at each call.
    """

    def forward(ctx: Any, *arguments: Any) -> Any:
        results = launch(*arguments)
        save(ctx, arguments, results)
        return results

    parts = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = type(f"Direct_{launch.__name__}", (torch.autograd.Function,), parts)
    apply: Callable[..., Any] = function.apply
    return apply
