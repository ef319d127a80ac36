"""What follows from refused updates: counted, told, and after some in a row the run goes back and passes them over.

What: each refusal (trainer/update_guard.py) is an event (outcomes.py). After faults.rollback_after of them in a row
all ranks load the newest checkpoint again and later jump over the samples of those updates (rollback.py,
skipped_samples.py). A run that goes back faults.most_rollbacks times is ended: then it is not the samples.
Used by: trainer/loop.py, rollback.py. Tested by tests/trainer/test_faults.py and tests/integration/test_faults.py.
"""

from collections.abc import Mapping
from pathlib import Path

from disentangled.trainer.sections import FaultsSection


class FaultError(ValueError):
    """The run cannot go on. One line that says why and what to change; every rank raises the same."""


class RefusalCount:
    """Counts refused updates in a row; every rank has the same.

    Attributes:
        in_row: refused updates since the last one that both models made.
        first_step: the step of the first of them.
    """

    def __init__(self, section: FaultsSection) -> None:
        self._section = section
        self.in_row = 0
        self.first_step = 0

    def note(self, step: int, refusals: Mapping[str, str]) -> None:
        """Take note of the update of number `step`; refusals: model and why, empty where both were made."""
        if not refusals:
            self.in_row = 0
            return
        if not self.in_row:
            self.first_step = step
        self.in_row += 1

    @property
    def is_too_many(self) -> bool:
        """Whether the run should go back."""
        return 0 < self._section.rollback_after <= self.in_row

    def checkpoint_to_go_back_to(self, num_rollbacks: int, newest: Path | None) -> Path:
        """The newest checkpoint; FaultError where there is none, or where going back has not helped before."""
        told = f"{self.in_row} updates in a row from step {self.first_step} on were refused"
        if newest is None:
            raise FaultError(
                f"{told}, and there is no checkpoint to go back to: set checkpoint.every_steps, and lower "
                "optimizer.learning_rate or raise schedule.warmup_steps"
            )
        if num_rollbacks >= self._section.most_rollbacks:
            raise FaultError(
                f"{told}, after {num_rollbacks} times of going back (faults.most_rollbacks): it is not the samples; "
                "lower optimizer.learning_rate, or see RUN/events.jsonl"
            )
        return newest
