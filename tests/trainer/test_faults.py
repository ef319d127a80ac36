from pathlib import Path

import pytest

from disentangled.trainer.faults import FaultError, RefusalCount
from disentangled.trainer.sections import FaultsSection

BAD = {"generator": "its gradient is not finite"}


def test_refusals_in_a_row_are_too_many_and_one_good_update_ends_the_row() -> None:
    count = RefusalCount(FaultsSection(rollback_after=3))
    seen = []
    for step, refusals in enumerate([BAD, BAD, {}, BAD, BAD, {"discriminator": "spike"}]):
        count.note(step, refusals)
        seen.append((count.in_row, count.is_too_many))
    assert seen == [(1, False), (2, False), (0, False), (1, False), (2, False), (3, True)]
    assert count.first_step == 3


def test_zero_means_never() -> None:
    count = RefusalCount(FaultsSection(rollback_after=0))
    for step in range(100):
        count.note(step, BAD)
        assert not count.is_too_many


def test_going_back_needs_a_checkpoint_and_hope(tmp_path: Path) -> None:
    count = RefusalCount(FaultsSection(rollback_after=2, most_rollbacks=1))
    for step in (7, 8):
        count.note(step, BAD)
    assert count.checkpoint_to_go_back_to(0, tmp_path) == tmp_path
    with pytest.raises(FaultError, match=r"2 updates in a row from step 7 on were refused, and there is no checkpoint"):
        count.checkpoint_to_go_back_to(0, None)
    with pytest.raises(FaultError, match=r"after 1 times of going back .*lower optimizer.learning_rate"):
        count.checkpoint_to_go_back_to(1, tmp_path)
