"""Where a step's time goes: parts that are entered and left, each moment charged to the innermost of them.

What: on a CPU the process's own time, on a GPU events in its queue, so nothing waits while a step runs. Parts are
`generator` and `discriminator` (forward and backward), `sampling` (replacements), `optimizer` (norms, clipping,
update), `communication` (torch.distributed) and `rest`. On a GPU the kernel that draws also finishes the loss of its
rows, and all of it is `sampling`; what it draws from is written by the loss's first kernel, which is `generator`.
Used by: benchmarks/step_variants.py, step_rivals.py. Tested by: tests/benchmarks/test_step.py.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from disentangled.kernels.masked_lm_loss import eager
from disentangled.trainer.engine import EnginePair

PARTS = ("generator", "sampling", "discriminator", "optimizer", "communication", "rest")
COLLECTIVES = ("all_reduce", "reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor")


class PartClock:
    """Charges time to parts between start() and seconds(); does nothing outside."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._open: list[str] = []
        self._marks: list[tuple[Any, str]] = []

    def start(self) -> None:
        """Begin with `rest`."""
        self._open, self._marks = ["rest"], []
        self._mark()

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Charge the body to a part."""
        if not self._open:
            yield
            return
        self._open.append(name)
        self._mark()
        yield
        self._open.pop()
        self._mark()

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, each call charged to a part."""

        @functools.wraps(function)
        def charged(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return charged

    def seconds(self) -> dict[str, float]:
        """Of each part since start(); the clock then stands still."""
        self._mark()
        self._open = []
        if self._on_gpu:
            torch.cuda.synchronize()
        spent = dict.fromkeys(PARTS, 0.0)
        for (before, name), (after, _) in zip(self._marks, self._marks[1:], strict=False):
            spent[name] += before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
        return spent

    def _mark(self) -> None:
        moment: Any = time.process_time()
        if self._on_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((moment, self._open[-1]))


class _TimedKernel:
    """A Triton kernel whose launches are charged to a part."""

    def __init__(self, clock: PartClock, name: str, kernel: Any) -> None:
        self._clock, self._name, self._kernel = clock, name, kernel

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return self._clock.wrap(self._name, self._kernel[grid])


def watch_engines(engines: EnginePair, clock: PartClock) -> None:
    """Charge what a pair of engines does, from now on."""
    for name, engine in (("generator", engines.generator), ("discriminator", engines.discriminator)):
        engine.deepspeed.forward = clock.wrap(name, engine.deepspeed.forward)
        engine.deepspeed.backward = clock.wrap(name, engine.deepspeed.backward)
        engine.update = clock.wrap("optimizer", engine.update)  # type: ignore[method-assign]


@contextlib.contextmanager
def watch_functions(clock: PartClock) -> Iterator[None]:
    """Charge draws and collectives inside."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(eager, "_draw", clock.wrap("sampling", eager._draw)))
        if torch.cuda.is_available():
            from disentangled.kernels.masked_lm_loss import launch  # imports Triton

            kernel = _TimedKernel(clock, "sampling", launch.finish_kernel)
            stack.enter_context(patch.object(launch, "finish_kernel", kernel))
        for name in COLLECTIVES:
            stack.enter_context(patch.object(dist, name, clock.wrap("communication", getattr(dist, name))))
        yield
