"""What a rank's flat tensors hold, for optimizers that look at whole parameters.

What: at ZeRO's stages 1 to 3 DeepSpeed hands the optimizer flat fp32 tensors with cut parameters
(trainer/fragments.py); an optimizer that needs a mean over a parameter has to be told (trainer/adamw.py).
Used by: trainer/engine.py. Tested by tests/integration/test_zero_stages.py.
"""

import math
from typing import Any

import torch
from deepspeed import comm
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from disentangled.trainer.adamw import Piece
from disentangled.trainer.fragments import list_fragments, parameter_shapes


def pieces_of(engine: Any) -> tuple[dict[Tensor, list[Piece]], list[int]]:
    """This rank's pieces by flat tensor, and the elements of each parameter, numbered by its place in the model."""
    shapes = parameter_shapes(engine)
    numbers = {name: number for number, name in enumerate(shapes)}
    pieces: dict[Tensor, list[Piece]] = {}
    for fragment in list_fragments(engine):
        piece = Piece(numbers[fragment.name], fragment.offset, fragment.num_elements)
        pieces.setdefault(fragment.flat, []).append(piece)
    return pieces, [math.prod(shape) for shape in shapes.values()]


def add_over_ranks(totals: Tensor) -> Tensor:
    """The sum over all ranks; of a tensor on the host too, where an offloaded optimizer has it."""
    summed = totals.to(torch.device(get_accelerator().current_device_name()))
    comm.all_reduce(summed)
    return summed.to(totals.device)
