import pytest

from disentangled.trainer.pace import LINES, Pace, count_due


@pytest.mark.parametrize(
    ("after", "up_to", "every", "number"),
    [
        (0, 10, 5, 2),
        (5, 10, 5, 1),
        (10, 10, 5, 0),
        (0, 4, 5, 0),
        (0, 12, 5, 3),  # 5, 10 and the last step
        (11, 12, 0, 1),
        (0, 11, 0, 0),
        (12, 12, 4, 0),
        (0, 12, 4, 3),
        (13, 12, 4, 0),
    ],
)
def test_due_steps_are_counted(after: int, up_to: int, every: int, number: int) -> None:
    assert count_due(after, up_to, every, total_steps=12) == number


def test_time_left_is_that_of_steps_evaluations_and_checkpoints() -> None:
    pace = Pace(total_steps=100, evaluate_every=25, checkpoint_every=40)
    assert pace.remaining_seconds(0) is None
    pace.add_line(10, 20.0)
    assert pace.remaining_seconds(10) == pytest.approx(90 * 2)
    pace.add_pause("evaluation", 7.0)
    pace.add_pause("save", 11.0)
    assert pace.remaining_seconds(30) == pytest.approx(70 * 2 + 3 * 7 + 3 * 11)  # at 50 75 100 and 40 80 100
    assert pace.remaining_seconds(99) == pytest.approx(2 + 7 + 11)
    assert pace.remaining_seconds(100) == 0
    assert pace.remaining_seconds(105) == 0  # never negative


def test_line_under_way_counts() -> None:
    pace = Pace(100, 0, 0)
    assert pace.remaining_seconds(2, steps=2, seconds=1.0) == pytest.approx(98 * 0.5)
    pace.add_line(8, 9.0)
    assert pace.remaining_seconds(10, steps=2, seconds=1.0) == pytest.approx(90 * 1.0)


def test_a_slow_beginning_is_forgotten() -> None:
    pace = Pace(1000, 0, 0)
    pace.add_line(10, 1e6)
    for _ in range(LINES):
        pace.add_line(10, 10.0)
    assert pace.remaining_seconds(500) == pytest.approx(500)


def test_a_resumed_run_takes_its_own_steps_and_the_old_pauses() -> None:
    rows = [
        {"step": 10, "seconds_per_step": 99.0, "evaluation_seconds": 0.0, "save_seconds": 0.0},
        {"step": 10, "validation_mlm_loss": 3.0},  # evaluated after its line, so the time is on the next one
        {"step": 20, "seconds_per_step": 99.0, "evaluation_seconds": 6.0, "save_seconds": 0.0},
        {"step": 50, "seconds_per_step": 99.0, "evaluation_seconds": 9.0, "save_seconds": 4.0},  # at 20 30 40, and 30
    ]
    pace = Pace(100, evaluate_every=10, checkpoint_every=30)
    pace.learn(rows)
    assert pace.remaining_seconds(50) is None  # how fast this machine is, is not known yet
    pace.add_line(10, 10.0)
    assert pace.remaining_seconds(60) == pytest.approx(40 * 1.0 + 4 * 3.0 + 2 * 4.0)
