"""How many bytes of tensors a piece of code holds at most, on a CPU.

What: torch's profiler reports every allocation and release of its CPU allocator, internal buffers included; their
running sum has a highest and a last value. What was allocated before is not counted, nor its release.
Used by: trainer/memory_plan.py. Tested by tests/trainer/test_memory_plan.py.
"""

import types
from typing import Self

from torch.profiler import ProfilerActivity, profile


class AllocatedBytes:
    """Counts inside a `with` block; afterwards `peak` and `resting` are the most and what is left at its end."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.peak = self.resting = 0

    def __enter__(self) -> Self:
        self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._profiler.__exit__(kind, error, trace)
        if kind is not None:
            return
        assert self._profiler.profiler is not None and self._profiler.profiler.kineto_results is not None
        events = [event for event in self._profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            self.resting += event.nbytes()  # type: ignore[attr-defined]
            self.peak = max(self.peak, self.resting)
