from collections import deque
from types import SimpleNamespace
from typing import Any

from disentangled.trainer.faults import RefusalCount
from disentangled.trainer.outcomes import keep_outcome, note_outcomes
from disentangled.trainer.sections import FaultsSection

SAMPLES_OF_STEP = 8


class Model:
    """What outcomes.py uses of a ModelEngine; a decision is the refusal's words."""

    def note(self, decision: str) -> str:
        return decision


class Run:
    """What outcomes.py uses of a Training; each step's decisions are said beforehand."""

    def __init__(self, *decisions: dict[str, str], rollback_after: int = 0) -> None:
        self.step = 0
        self.outcomes: deque[Any] = deque()
        self.refusals = RefusalCount(FaultsSection(rollback_after=rollback_after))
        self.told: list[tuple[int, str, int]] = []
        coming = iter(decisions)
        self.engines = SimpleNamespace(generator=Model(), discriminator=Model(), take_decisions=lambda: next(coming))

    def samples_before(self, step: int) -> int:
        return step * SAMPLES_OF_STEP

    def tell(self, kind: str, text: str, step: int, first_sample: int) -> None:
        assert kind == "skipped_update"
        self.told.append((step, text, first_sample))

    def do_step(self, but_last: int) -> None:
        keep_outcome(self)  # type: ignore[arg-type]
        self.step += 1
        note_outcomes(self, but_last)  # type: ignore[arg-type]


GOOD = {"generator": "", "discriminator": ""}
BAD = {"generator": "", "discriminator": "a spike"}


def test_refusals_are_told_a_step_later_as_of_their_own_step() -> None:
    run = Run(GOOD, BAD, GOOD)
    for expected in ([], [], [(1, "the discriminator's update was skipped: a spike", 8)]):
        run.do_step(but_last=1)
        assert run.told == expected
    assert len(run.outcomes) == 1


def test_all_are_known_where_nothing_is_left() -> None:
    run = Run(GOOD, BAD)
    run.do_step(but_last=1)
    run.do_step(but_last=0)
    assert [step for step, *_ in run.told] == [1] and run.refusals.in_row == 1 and not run.outcomes


def test_what_comes_after_too_many_in_a_row_is_neither_told_nor_counted() -> None:
    run = Run(BAD, BAD, GOOD, rollback_after=2)
    for _ in range(3):
        run.do_step(but_last=3)
    note_outcomes(run)  # type: ignore[arg-type]
    assert run.refusals.is_too_many and (run.refusals.first_step, run.refusals.in_row) == (0, 2)
    assert [step for step, *_ in run.told] == [0, 1]


def test_model_that_rests_has_no_outcome() -> None:
    run = Run({"generator": "not finite"}, {})
    run.do_step(but_last=0)
    assert run.refusals.in_row == 1
    run.do_step(but_last=0)
    assert run.refusals.in_row == 0
