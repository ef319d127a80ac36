"""What masked_lm_loss refuses: checks whose ValueError names the argument, its value, the rule and the remedy.

They look at shapes, dtypes, devices and plain numbers only, so they never wait for a GPU; on a CPU also at labels and
banned ids.
Used by: op.py. Tested by: tests/kernels/test_masked_lm_arguments.py.
Not here: what an implementation cannot run (dispatch.py).
"""

# M masked tokens  D hidden width  V vocabulary

import math

import torch
from torch import Tensor

from disentangled.kernels.masked_lm_loss.draw import Draw

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(hidden: Tensor, table: Tensor, bias: Tensor, labels: Tensor) -> None:
    """The four tensors fit each other."""
    for name, x in (("hidden", hidden), ("table", table), ("bias", bias)):
        if x.dtype not in DTYPES:
            raise ValueError(f"{name} is {x.dtype}: give float16, bfloat16, float32 or float64")
    if hidden.dim() != 2 or table.dim() != 2 or hidden.shape[1] != table.shape[1] or table.shape[0] == 0:
        raise ValueError(
            f"hidden {_shape(hidden)} and table {_shape(table)} do not fit: give [M, D] and [V, D] of the same D, with "
            "at least one id"
        )
    if bias.shape != table.shape[:1] or bias.dtype != table.dtype:
        raise ValueError(
            f"bias is {bias.dtype} {_shape(bias)}: give a number for each id of the table, in its dtype {table.dtype}"
        )
    if labels.shape != hidden.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(
            f"labels are {labels.dtype} {_shape(labels)}: give one int64 id for each of {len(hidden)} rows"
        )
    _check_devices(hidden, table=table, bias=bias, labels=labels)
    if labels.device.type == "cpu" and labels.numel() and int(labels.max()) >= len(table):
        raise ValueError(f"label {int(labels.max())} is not an id of a table of {len(table)}: give a larger table")


def check_draw(draw: Draw, hidden: Tensor, table: Tensor) -> None:
    """The draw fits the tensors."""
    if not 0 < draw.temperature < math.inf:  # nan is neither
        raise ValueError(f"temperature is {draw.temperature}: give a positive number, 1 draws from the softmax itself")
    for name, x in (("sample", draw.sample), ("token", draw.token)):
        if x.shape != hidden.shape[:1] or x.dtype != torch.int64:
            raise ValueError(f"draw.{name} is {x.dtype} {_shape(x)}: give int64 [M] = {[len(hidden)]}")
    if draw.banned.shape != table.shape[:1] or draw.banned.dtype != torch.bool:
        raise ValueError(f"draw.banned is {draw.banned.dtype} {_shape(draw.banned)}: give bool [V] = {[len(table)]}")
    _check_devices(hidden, sample=draw.sample, token=draw.token, banned=draw.banned)
    if draw.banned.device.type == "cpu" and draw.banned.all():
        raise ValueError(f"all {len(table)} ids are banned: leave one that can be drawn")


def _check_devices(hidden: Tensor, **others: Tensor) -> None:
    for name, x in others.items():
        if x.device != hidden.device:
            raise ValueError(f"{name} is on {x.device} and hidden on {hidden.device}: move it there")


def _shape(x: Tensor) -> list[int]:
    return [*x.shape]
