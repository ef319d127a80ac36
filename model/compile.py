"""torch.compile of a model's layers, in place, so names in checkpoints stay. Rounding differs from the eager code's.

What: where attention and dropout are fused kernels, layers are compiled whole: the kernels are operators that the
compiler takes as they are, and around them it fuses activation and casts, and adds gradients within the products that
make them. Elsewhere attention reads lengths on the host, so only the feed-forward and the two residual outputs are
compiled, each on its own; the mask decoder, which calls them on its own, has them so anywhere.
Used by: trainer/engine.py. Tested by tests/model/test_compile.py.
"""

import torch
from torch import nn

from disentangled.kernels import keep_mask_op  # noqa: F401, defines the operator
from disentangled.kernels.hidden_dropout.op import choose_implementation, load_kernel
from disentangled.kernels.residual_norm.op import load_kernels
from disentangled.model.layer import Intermediate, Layer, ResidualOutput

# Of one code: two models, two widths, all tokens or masked ones, layers 0, 1 and others, with gradients and without.
# Past the limit torch would go on with the eager code.
MAX_VARIANTS = 64


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every layer of `model` when it is first called."""
    from torch import _dynamo  # importing it takes seconds: only where it is wanted

    kinds: tuple[type[nn.Module], ...] = (Intermediate, ResidualOutput)
    if choose_implementation(None, next(model.parameters()).device, torch.float32) == "triton":
        load_kernel()
        load_kernels()
        kinds = (*kinds, Layer)
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, MAX_VARIANTS)
    for module in model.modules():
        if isinstance(module, kinds):
            module.compile(backend=backend, dynamic=True)
