import itertools
import math

import pytest

from disentangled.trainer.schedule import SCHEDULES, ScheduleSection, learning_rate_factor


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (5, 15 / 16), (12, 0.5), (19, 1 / 16), (20, 0.0)],
)
def test_learning_rate_factor_rises_over_warmup_and_falls_to_zero(step: int, factor: float) -> None:
    # 20 steps, 4 of warm-up: the first update is not wasted at rate 0, and the last one still moves
    assert learning_rate_factor(step, ScheduleSection(total_steps=20, warmup_steps=4)) == pytest.approx(factor)


def test_learning_rate_factor_without_warmup_starts_at_the_peak() -> None:
    schedule = ScheduleSection(total_steps=10, warmup_steps=0)
    assert [learning_rate_factor(step, schedule) for step in (0, 5, 9)] == [1.0, 0.5, pytest.approx(0.1)]


def test_learning_rate_factor_of_warmup_alone_ends_at_the_peak() -> None:
    schedule = ScheduleSection(total_steps=4, warmup_steps=4)
    assert [learning_rate_factor(step, schedule) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]


def test_cosine_falls_over_half_a_period() -> None:
    schedule = ScheduleSection(total_steps=12, warmup_steps=4, kind="cosine")
    factors = [learning_rate_factor(step, schedule) for step in (3, 4, 6, 8, 10, 12)]
    assert factors == pytest.approx([1, 1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0])


def test_stable_stays_level_and_falls_by_the_root_at_the_end() -> None:
    schedule = ScheduleSection(total_steps=100, warmup_steps=10, kind="stable", decay_steps=16)
    factors = [learning_rate_factor(step, schedule) for step in (9, 10, 50, 84, 85, 88, 93, 100)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_stable_decays_over_a_tenth_unless_told() -> None:
    schedule = ScheduleSection(total_steps=1000, warmup_steps=10, kind="stable")
    assert learning_rate_factor(900, schedule) == 1 > learning_rate_factor(901, schedule)


def test_stable_run_made_longer_keeps_its_level_part() -> None:
    short, long = (ScheduleSection(steps, 10, "stable", decay_steps=20) for steps in (100, 200))
    assert [learning_rate_factor(step, short) for step in range(80)] == [
        learning_rate_factor(step, long) for step in range(80)
    ]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_kind_comes_down_to_the_final_factor(kind: str) -> None:
    schedule = ScheduleSection(100, 10, kind, decay_steps=30, final_factor=0.1)
    factors = [learning_rate_factor(step, schedule) for step in range(10, 101)]
    assert factors[0] == 1 and factors[-1] == pytest.approx(0.1)
    assert all(later <= earlier for earlier, later in itertools.pairwise(factors))
