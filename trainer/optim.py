"""Parameter groups, AdamW and its peak learning rates.

What: GDES is two sets of parameters, {E_G, theta_G} and {E_Delta, theta_D}, one per engine; each set is split into
weights that decay and weights that do not (biases and LayerNorm weights, as in the original).
Used by: trainer/engine.py, trainer/rtd_step.py. Tested by tests/trainer/test_optim.py.
Not here: how the rate moves (schedule.py).
"""

import torch
from torch import nn

from disentangled.model.published_names import WORD_EMBEDDINGS
from disentangled.trainer.sections import OptimizerSection

TABLE_GROUP = "table"


def decays(name: str) -> bool:
    """Whether weight decay acts on the parameter of this name."""
    return not (name.endswith("bias") or name.endswith("LayerNorm.weight"))


def build_optimizer(
    model: nn.Module, section: OptimizerSection, learning_rate: float, table_apart: bool = False
) -> torch.optim.AdamW:
    """AdamW over all parameters of `model` in two groups, `decay` and `no_decay`.

    Args:
        table_apart: the embedding table, which decays too, in a third group, `table`, so that it can rest.
    """
    named = list(model.named_parameters())
    groups: list[dict[str, object]] = []
    if table_apart:
        table = [p for n, p in named if n == WORD_EMBEDDINGS]
        named = [(n, p) for n, p in named if n != WORD_EMBEDDINGS]
        groups.append({"name": TABLE_GROUP, "params": table, "weight_decay": section.weight_decay})
    groups += [
        {"name": "decay", "params": [p for n, p in named if decays(n)], "weight_decay": section.weight_decay},
        {"name": "no_decay", "params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(section.beta1, section.beta2), eps=section.epsilon)


def peak_learning_rates(section: OptimizerSection) -> tuple[float, float]:
    """The generator's and the discriminator's peak rates."""
    return section.learning_rate, section.discriminator_learning_rate or section.learning_rate
