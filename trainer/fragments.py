"""Where an engine keeps each parameter's fp32 weight and moments on this rank, at any ZeRO stage.

What: DeepSpeed flattens parameters into partitions, and each rank owns some stretch of some of them. A `Fragment` says
which stretch of which parameter lies where in which flat tensor, so that state can be written and read by parameter
name, whatever stage and number of ranks wrote it. The only file that knows DeepSpeed's partitions.
Used by: trainer/engine_state.py. Tested by tests/trainer/test_fragments.py.
Not here: weights and moments swapped to NVMe, which trainer/ds_config.py refuses.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fragment:
    """Elements start .. start + num_elements - 1 of the flattened parameter `name`, held by this rank.

    Attributes:
        flat: the fp32 tensor that the optimizer updates; its state has the same layout.
        offset: where the fragment begins in the flattened `flat`.
    """

    name: str
    start: int
    num_elements: int
    flat: Tensor
    offset: int

    def of(self, values: Tensor) -> Tensor:
        """The fragment's part [num_elements] of `flat`, or of a state tensor of its layout, as a view."""
        return values.detach().view(-1)[self.offset : self.offset + self.num_elements]


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The optimizer that was handed to deepspeed.initialize; ZeRO wraps it."""
    optimizer: torch.optim.Optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)
    return optimizer


def parameter_shapes(engine: Any) -> dict[str, list[int]]:
    """Each parameter's whole shape by name."""
    named = engine.module.named_parameters()
    return {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in named}


def flat_tensors(engine: Any) -> list[Tensor]:
    """All fp32 tensors of this rank that the optimizer updates, in its order."""
    wrapper = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(wrapper, name):  # ZeRO 3; ZeRO 1 and 2; ZeRO 1 in bf16 with fp32 accumulation
            return list(getattr(wrapper, name))
    return [parameter for group in wrapper.param_groups for parameter in group["params"]]


def is_replicated(engine: Any) -> bool:
    """Whether every rank holds everything: stage 0."""
    return base_optimizer(engine) is engine.optimizer


def list_fragments(engine: Any) -> list[Fragment]:
    """All fragments that this rank holds; unless replicated, each element of a parameter is in one rank's only."""
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return list(_fragments_of_stage_3(engine.optimizer, names))
    if not is_replicated(engine):
        return list(_fragments_of_stages_1_and_2(engine, names))
    return [Fragment(name, 0, parameter.numel(), parameter, 0) for parameter, name in names.items()]


def _fragments_of_stages_1_and_2(engine: Any, names: dict[Tensor, str]) -> Iterator[Fragment]:
    partitions = flat_tensors(engine)
    for parameter, name in names.items():
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is not None:
            low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(name, low.start, low.numel, partitions[mapping.param_group_index], high.start)


def _fragments_of_stage_3(optimizer: Any, names: dict[Tensor, str]) -> Iterator[Fragment]:
    for group, flat in zip(optimizer.fp16_groups, optimizer.fp32_partitioned_groups_flat, strict=True):
        offset = 0
        for parameter in group:
            part = parameter.ds_tensor.ds_numel  # the same on all ranks: the last ranks' end is padding
            start = part * optimizer._get_param_partition_rank(parameter)
            num_elements = min(part, parameter.ds_numel - start)
            if num_elements > 0:
                yield Fragment(names[parameter], start, num_elements, flat, offset)
            offset += part
