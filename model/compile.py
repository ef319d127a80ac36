"""torch.compile of what surrounds attention.

What: the feed-forward and the two residual outputs of each layer, each compiled on its own and in place, so names in
checkpoints stay: biases, activation, dropout, residual and LayerNorm are fused. Dropout's decisions are an operator
that the compiler takes whole. Attention is left out: what it does around its kernels is matrix products, and on a CPU
it reads lengths on the host. Rounding differs from the eager code's.
Used by: trainer/engine.py. Tested by tests/model/test_compile.py.
"""

import torch
from torch import nn

from disentangled.kernels import keep_mask_op  # noqa: F401, defines the operator
from disentangled.kernels.hidden_dropout.op import choose_implementation, load_kernel
from disentangled.kernels.residual_norm.op import load_kernels
from disentangled.model.layer import Intermediate, ResidualOutput

# Of one code: two models, two widths, all tokens or masked ones, layers 0, 1 and others, with gradients and without.
# Past the limit torch would go on with the eager code.
MAX_VARIANTS = 64


def compile_layers(model: nn.Module, backend: str = "inductor") -> None:
    """Compile every layer of `model` when it is first called."""
    from torch import _dynamo  # importing it takes seconds: only where it is wanted

    if choose_implementation(None, next(model.parameters()).device, torch.float32) == "triton":
        load_kernel()
        load_kernels()
    _dynamo.config.recompile_limit = max(_dynamo.config.recompile_limit, MAX_VARIANTS)
    for module in model.modules():
        if isinstance(module, Intermediate | ResidualOutput):
            module.compile(backend=backend, dynamic=True)
