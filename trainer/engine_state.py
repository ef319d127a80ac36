"""An engine's state by parameter name: taken to the host, and put into an engine of any stage and number of ranks.

What: fp32 weights, moments, what the optimizer counts, the loss scale and skipped updates. DeepSpeed's own checkpoints
can be read by the same stage and number of ranks only; see docs/decisions/0008-checkpoints-by-name.md.
Used by: trainer/checkpoint.py. Tested by tests/trainer/test_fragments.py and tests/integration/test_other_ranks.py.
"""

from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from disentangled.trainer.fragments import (
    Fragment,
    base_optimizer,
    flat_tensors,
    is_replicated,
    list_fragments,
    parameter_shapes,
)
from disentangled.trainer.model_files import WEIGHT, ModelFiles, tensor_name


@dataclass(frozen=True)
class EngineRecord:
    """What an engine's state has beside tensors; the same on all ranks.

    Attributes:
        shapes: each parameter's shape.
        counters: numbers that the optimizer keeps for every parameter alike, such as `step`: value, and whether it
            keeps it as a tensor.
        loss_scale: the fp16 loss scaler's numbers; empty in other precisions.
        num_skipped_steps: updates that were not made.
    """

    shapes: dict[str, list[int]]
    counters: dict[str, tuple[float, bool]]
    loss_scale: dict[str, float]
    num_skipped_steps: int


@dataclass(frozen=True)
class RankState:
    """This rank's stretches, copied to the host: tensors by model_files.tensor_name, and where each begins."""

    tensors: dict[str, Tensor]
    starts: dict[str, int]


def take_record(engine: Any) -> EngineRecord:
    """The engine's record."""
    counters: dict[str, tuple[float, bool]] = {}
    for state in base_optimizer(engine).state.values():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.dim() == 0:
                counters[key] = (value.item(), True)
            elif isinstance(value, int | float):
                counters[key] = (value, False)
    return EngineRecord(parameter_shapes(engine), counters, _loss_scale(engine), int(engine.skipped_steps))


def take_state(engine: Any) -> RankState:
    """Copies of this rank's stretches, which the engine may change at once; of what all ranks hold, the first one's."""
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    if is_replicated(engine) and dist.is_initialized() and dist.get_rank() != 0:
        return RankState(tensors, starts)
    states = base_optimizer(engine).state
    for fragment in list_fragments(engine):
        moments = {key: value for key, value in states.get(fragment.flat, {}).items() if _is_moment(value)}
        for kind, values in {WEIGHT: fragment.flat, **moments}.items():
            key = tensor_name(kind, fragment.name)
            tensors[key] = fragment.of(values).to("cpu", torch.float32, copy=True)
            starts[key] = fragment.start
    return RankState(tensors, starts)


def put_state(engine: Any, record: EngineRecord, files: ModelFiles) -> None:
    """Make the engine what it was when the files were written; called by every rank.

    Raises:
        ValueError: the files are of another model.
    """
    shapes = parameter_shapes(engine)
    for name, shape in shapes.items():
        if record.shapes.get(name) != shape:
            raise ValueError(f"the checkpoint's {name} has shape {record.shapes.get(name)}, the model's {shape}")
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
            parameter.data.copy_(files.read_weight(name, shapes[name]))
    kinds = files.kinds() - {WEIGHT}
    states = base_optimizer(engine).state
    for flat in flat_tensors(engine):
        _prepare_state(states[flat], flat, kinds, record, base_optimizer(engine))
    for fragment in list_fragments(engine):
        _fill(fragment, WEIGHT, fragment.flat, files)
        for kind in kinds:
            _fill(fragment, kind, states[fragment.flat][kind], files)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for key, value in record.loss_scale.items():
        setattr(scaler, key, value)
    engine.skipped_steps = record.num_skipped_steps


def _prepare_state(
    state: dict[str, Any], flat: Tensor, kinds: set[str], record: EngineRecord, optimizer: torch.optim.Optimizer
) -> None:
    """Give a flat tensor's optimizer state its keys; what is there and was not saved becomes zero, as at the start."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            value.zero_()
        elif isinstance(value, int | float):
            state[key] = 0
    for kind in kinds - state.keys():
        state[kind] = torch.zeros_like(flat, requires_grad=False)
    on_device = optimizer.defaults.get("fused") or optimizer.defaults.get("capturable")
    for key, (value, is_tensor) in record.counters.items():
        if not is_tensor:
            state[key] = value
        elif key in state:
            state[key].fill_(value)
        else:
            state[key] = torch.tensor(float(value), device=flat.device if on_device else "cpu")


def _fill(fragment: Fragment, kind: str, values: Tensor, files: ModelFiles) -> None:
    fragment.of(values).copy_(files.read(kind, fragment.name, fragment.start, fragment.num_elements))


def _is_moment(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


def _loss_scale(engine: Any) -> dict[str, float]:
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    if scaler is None or not engine.fp16_enabled():
        return {}
    return {key: value for key, value in vars(scaler).items() if isinstance(value, int | float)}
