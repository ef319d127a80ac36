"""Activation checkpointing: keep a module's input instead of what is inside, and run it again in backward.

What: dropout is a function of (seed, sample, token, layer), not of a generator's state, so the second run draws what
the first drew and gradients are equal bit for bit (arXiv 1604.06174 section 3).
Used by: model/encoder.py, model/generator.py. Tested by tests/model/test_recompute.py.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def run_module(module: nn.Module, recompute: bool, *arguments: Any) -> Any:
    """module(*arguments), and again in backward where `recompute`."""
    if not (recompute and torch.is_grad_enabled()):
        return module(*arguments)
    return checkpoint(module, *arguments, use_reentrant=False, preserve_rng_state=False)
