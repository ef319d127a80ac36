"""The learning rate's share of its peak at each update.

What: linear warm-up, then one of three ways down to `final_factor`:
- linear: from the end of warm-up to the last update, as in the paper (arXiv 2111.09543, table 10);
- cosine: half a period over the same updates (arXiv 1608.03983 section 3, without restarts);
- stable: the peak until `decay_steps` before the end, then 1 - sqrt (arXiv 2405.18392 section 4): a run can be made
  longer from any checkpoint of its level part.
It follows our own global step, never an engine's: a skipped step does not shift it.
Used by: trainer/rtd_step.py, loop.py. Tested by: tests/trainer/test_schedule.py.
"""

import math
from dataclasses import dataclass

SCHEDULES = ("linear", "cosine", "stable")


@dataclass(frozen=True)
class ScheduleSection:
    """A recipe's [schedule]."""

    total_steps: int = 500_000
    warmup_steps: int = 10_000
    kind: str = "linear"  # or cosine, stable
    decay_steps: int = 0  # of stable: the updates of its end; 0: a tenth of all
    final_factor: float = 0.0  # share of the peak that the last updates come down to

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"schedule.total_steps is {self.total_steps}: it must be at least 1")
        if self.kind not in SCHEDULES:
            raise ValueError(f"schedule.kind is {self.kind!r}: it must be one of {', '.join(SCHEDULES)}")
        for name in ("warmup_steps", "decay_steps"):
            if not 0 <= getattr(self, name) <= self.total_steps:
                raise ValueError(
                    f"schedule.{name} is {getattr(self, name)}: it must lie between 0 and schedule.total_steps "
                    f"({self.total_steps})"
                )
        if not 0 <= self.final_factor <= 1:
            raise ValueError(f"schedule.final_factor is {self.final_factor}: it must lie between 0 and 1")


def learning_rate_factor(step: int, schedule: ScheduleSection) -> float:
    """The share of the peak rate that update number `step` (0 for the first) uses."""
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    first = schedule.warmup_steps
    if schedule.kind == "stable":
        first = max(first, schedule.total_steps - (schedule.decay_steps or schedule.total_steps // 10))
    if step < first:
        return 1.0
    done = (step - first) / max(1, schedule.total_steps - first)
    if schedule.kind == "cosine":
        left = 0.5 * (1.0 + math.cos(math.pi * done))
    else:
        left = 1.0 - (math.sqrt(done) if schedule.kind == "stable" else done)
    return schedule.final_factor + (1.0 - schedule.final_factor) * left
