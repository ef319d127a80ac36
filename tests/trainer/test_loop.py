"""The loop's small parts; the loop itself runs in tests/integration/."""

import pytest

from disentangled.trainer.loop import is_due


@pytest.mark.parametrize(
    ("every_steps", "due"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7]), (0, [7])]
)
def test_is_due_at_its_interval_and_at_the_end(every_steps: int, due: list[int]) -> None:
    assert [step for step in range(1, 8) if is_due(step, every_steps, total_steps=7)] == due
