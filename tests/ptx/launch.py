"""Launches run on the machine of machine.py: compiled for a GPU, executed on a CPU.

What: within `on_machine`, the launchers of the given modules compile their programs as for that GPU and run them here,
on tensors of this machine. Triton must not be in its interpreter (TRITON_INTERPRET unset).
Used by: compiled_attention.py. Tested by: tests/ptx/test_machine.py.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import torch

from benchmarks.launches import Launch, caught, compile_launch, specialize
from tests.ptx.machine import Machine
from tests.ptx.memory import GlobalMemory, Watch, shared_memory
from tests.ptx.program import Program, parse


@contextmanager
def on_machine(capability: int, seed: int, *modules: ModuleType) -> Iterator[None]:
    """Within it, what these modules launch is run here; seed: that of the chances a run takes (machine.py)."""
    chance = Random(seed)
    with caught(lambda launch: run(launch, capability, chance), capability, *modules):
        yield


def run(
    launch: Launch,
    capability: int,
    chance: Random,
    make_machine: Callable[[Program], Machine] = Machine,
    watch: Watch | None = None,
) -> None:
    """Compile and run all blocks of a launch, in an order of chance; `watch` is told of their accesses."""
    compiled = compile_launch(launch, capability)
    program = parse(compiled.asm["ptx"])
    machine = make_machine(program)
    signature = specialize(launch).signature
    passed = [launch.arguments[name] for name, kind in signature.items() if kind != "constexpr"]
    memory = GlobalMemory([value for value in passed if isinstance(value, torch.Tensor)], watch)
    values = [_bits(value) for value in passed]
    grid = (*launch.grid, 1, 1)[:3]
    blocks = list(itertools.product(*(range(size) for size in grid)))
    with np.errstate(all="ignore"):
        for index in chance.sample(blocks, len(blocks)):
            shared = shared_memory(program.shared_bytes + compiled.metadata.shared, watch)
            machine.run(index, grid, compiled.metadata.num_warps, values, memory, shared, chance)


def _bits(value: Any) -> int:
    """A parameter's, as an unsigned number."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value % (1 << 64)
