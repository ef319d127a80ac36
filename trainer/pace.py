"""How long a run still takes: its steps, and the evaluations and checkpoints between them.

What: seconds of a step are the mean over this process's last lines, so that a resumed run's estimate is that of the
machine it runs on now; an evaluation and a checkpoint take what the last ones took, also those before a resume.
Used by: trainer/speedometer.py. Tested by tests/trainer/test_pace.py.
"""

from collections import deque
from collections.abc import Sequence

LINES = 10  # of the log: long enough for an even mean, short enough to follow a machine that becomes slower


class Pace:
    """Durations so far, and what they make of the steps to come.

    Args:
        total_steps: of the whole run.
        evaluate_every, checkpoint_every: steps between two; 0: only after the last step.
    """

    def __init__(self, total_steps: int, evaluate_every: int, checkpoint_every: int) -> None:
        self._total_steps = total_steps
        self._intervals = {"evaluation": evaluate_every, "save": checkpoint_every}
        self._last_seconds = {"evaluation": 0.0, "save": 0.0}
        self._lines: deque[tuple[int, float]] = deque(maxlen=LINES)

    def learn(self, rows: Sequence[dict[str, float]]) -> None:
        """Take the durations of evaluations and checkpoints from the lines of the run before it was resumed."""
        steps = [0, *(int(row["step"]) for row in rows)]
        for before, row in zip(steps, rows, strict=False):
            for kind, every in self._intervals.items():
                # those after step `before` come behind its line, so they are on this one
                number = count_due(before - 1, int(row["step"]) - 1, every, self._total_steps)
                if number and row.get(f"{kind}_seconds", 0.0) > 0:
                    self._last_seconds[kind] = row[f"{kind}_seconds"] / number

    def add_line(self, steps: int, seconds: float) -> None:
        """Count the steps of one line of the log, evaluations and checkpoints left out."""
        self._lines.append((steps, seconds))

    def add_pause(self, kind: str, seconds: float) -> None:
        """Count an `evaluation` or a `save`."""
        self._last_seconds[kind] = seconds

    def remaining_seconds(self, step: int, steps: int = 0, seconds: float = 0.0) -> float | None:
        """Seconds until the run has ended, from after `step`; None while nothing was measured.

        Args:
            step: updates done.
            steps, seconds: those of the line under way.
        """
        num_steps = steps + sum(line[0] for line in self._lines)
        if not num_steps:
            return None
        step_seconds = (seconds + sum(line[1] for line in self._lines)) / num_steps
        pauses = sum(
            count_due(step, self._total_steps, every, self._total_steps) * self._last_seconds[kind]
            for kind, every in self._intervals.items()
        )
        return max(0.0, (self._total_steps - step) * step_seconds + pauses)


def count_due(after: int, up_to: int, every: int, total_steps: int) -> int:
    """How many of the steps after + 1 .. up_to are multiples of `every` (0: none) or the run's last step."""
    if up_to <= after:
        return 0
    multiples = up_to // every - max(0, after) // every if every else 0
    last_is_extra = after < total_steps <= up_to and not (every and total_steps % every == 0)
    return multiples + last_is_extra
