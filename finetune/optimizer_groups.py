"""Learning rates that fall from the head to the embeddings: each layer has a share of the rate of the one above it.

Layers are numbered by the trunk's own list (`encoder.layer.3`, `layers.3`); what the trunk holds beside it (embeddings,
relative embeddings and their norm) stands below the first, a pooler or final norm and the head above the last.
Used by: task_trainer.py. Tested by tests/finetune/test_optimizer_groups.py.
Not here: which parameters decay (transformers' Trainer: all but biases and norms).
"""

import re
from collections.abc import Collection
from typing import Any

from transformers import PreTrainedModel

LAYER = re.compile(r"\.(?:layer|layers)\.(\d+)\.")
ABOVE_THE_LAST = ("pooler", "final_norm")


def layer_groups(
    model: PreTrainedModel, learning_rate: float, layer_decay: float, weight_decay: float, decayed: Collection[str]
) -> list[dict[str, Any]]:
    """The optimizer's groups, each with its learning rate and weight decay.

    Args:
        learning_rate: of the head.
        decayed: names of the parameters that weight decay is for.
    """
    parameters = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    heights = {name: find_height(name, model.base_model_prefix) for name, _ in parameters}
    top = 1 + max((height for height in heights.values() if height is not None), default=0)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in parameters:
        height = heights[name]
        height = top if height is None else height
        group = groups.setdefault(
            (height, name in decayed),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (top - height),
                "weight_decay": weight_decay if name in decayed else 0.0,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


def find_height(name: str, trunk: str) -> int | None:
    """How high a parameter stands: 0 below the layers, the first layer 1; None above the last one."""
    if not name.startswith(f"{trunk}.") or any(part in name.split(".") for part in ABOVE_THE_LAST):
        return None
    found = LAYER.search(name)
    return int(found[1]) + 1 if found else 0
