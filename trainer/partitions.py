"""Which elements of which parameter a rank's optimizer steps under ZeRO.

What: at stages 1 to 3 DeepSpeed hands the optimizer flat fp32 tensors. At stages 1 and 2 a rank has an equal part of a
group's parameters laid end to end, so that a parameter may lie on two ranks; at stage 3 it has an equal part of each
parameter, the last one padded. An optimizer that looks at whole parameters has to be told (trainer/adamw.py).
Used by: trainer/engine.py. Tested by tests/integration/test_zero_stages.py.
"""

from typing import Any

import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from disentangled.trainer.adamw import Piece


def is_partitioned(engine: Any) -> bool:
    """Whether the optimizer of a DeepSpeed engine steps flat tensors instead of the model's parameters."""
    return any(
        hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping") for parameter in engine.module.parameters()
    )


def parameter_sizes(engine: Any) -> list[int]:
    """Elements of each parameter of the model."""
    return [getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine.module.parameters()]


def partition_pieces(engine: Any) -> dict[Tensor, list[Piece]]:
    """This rank's pieces, by the flat tensor that they are in; the number of a parameter is its place in the model."""
    zero = engine.optimizer
    pieces: dict[Tensor, list[Piece]] = {}
    for number, (parameter, size) in enumerate(zip(engine.module.parameters(), parameter_sizes(engine), strict=True)):
        if hasattr(parameter, "ds_id"):
            group, start, length = zero.grad_position[zero.get_param_id(parameter)]
            flat = zero.fp32_partitioned_groups_flat[group]
            length = max(0, min(length, size - comm.get_rank() * length))  # without the padding
        elif parameter._hp_mapping is None:  # all of it is on other ranks
            continue
        else:
            address = parameter._hp_mapping.hp_fragment_address
            start, length = address.start, address.numel
            (flat,) = zero.optimizer.param_groups[parameter._hp_mapping.param_group_index]["params"]
        pieces.setdefault(flat, []).append(Piece(number, start, length))
    return pieces


def add_over_ranks(totals: Tensor) -> Tensor:
    """The sum over all ranks; of a tensor on the host too, where an offloaded optimizer has it."""
    summed = totals.to(torch.device(get_accelerator().current_device_name()))
    comm.all_reduce(summed)
    return summed.to(totals.device)
