import pytest
import torch
from torch import nn

from disentangled.trainer.gradient_watch import GradientWatch


def test_parameter_that_a_pass_left_out_is_named() -> None:
    model = nn.ModuleDict({"used": nn.Linear(3, 3), "idle": nn.Linear(3, 3)})
    model["used"].bias.requires_grad_(False)
    watch = GradientWatch(model)
    both = model["idle"](model["used"](torch.ones(3))).sum()
    both.backward()
    watch.check()
    model["used"](torch.ones(3)).sum().backward()  # the gradient of the pass before is still there
    with pytest.raises(RuntimeError, match=r"no gradient reached idle.weight and 1 more: every parameter must take"):
        watch.check()
    (model["used"](torch.ones(3)).sum() + 0 * model["idle"](torch.ones(3)).sum()).backward()
    watch.check()
