import numpy as np
import pytest

from disentangled.trainer.mixture import NUM_SLOTS, MixtureSchedule, SourceSize, describe_mixture, mixture_shares

# mDeBERTa-like: one large language, two small ones
SIZES = (1_000_000, 50_000, 1_000)
SOURCES = [SourceSize(name, 1.0, 500 * size, size) for name, size in zip("abc", SIZES, strict=True)]


def test_shares_are_proportional_to_tokens_to_the_alpha() -> None:
    powers = np.array([500.0 * size for size in SIZES]) ** 0.3
    assert np.allclose(mixture_shares(SOURCES, 0.3), powers / powers.sum())
    assert np.allclose(mixture_shares(SOURCES, 1.0), np.array(SIZES) / sum(SIZES))
    assert np.allclose(mixture_shares(SOURCES, 0.0), 1 / 3)


def test_shares_follow_the_weights() -> None:
    weighted = [SourceSize("a", 2.0, 100, 1), SourceSize("b", 1.0, 100, 1), SourceSize("c", 0.0, 100, 1)]
    assert np.allclose(mixture_shares(weighted, 0.3), [2 / 3, 1 / 3, 0])


def test_cap_moves_the_excess_to_the_others_in_proportion() -> None:
    num_samples = 400_000
    free = mixture_shares(SOURCES, 0.3)
    capped = mixture_shares(SOURCES, 0.3, max_epochs=2.0, num_samples=num_samples)
    epochs = capped * num_samples / np.array(SIZES)
    assert capped.sum() == pytest.approx(1)
    assert epochs[2] == pytest.approx(2.0) and epochs[1] == pytest.approx(2.0)
    assert free[2] * num_samples / SIZES[2] > 2
    loose = mixture_shares(SOURCES, 0.3, max_epochs=30.0, num_samples=num_samples)
    assert loose[0] / loose[1] == pytest.approx(free[0] / free[1])


def test_cap_that_leaves_too_little_is_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"data.max_epochs 1 allows 1,051,000 rows in all, this run needs 2,000,000"):
        mixture_shares(SOURCES, 0.3, max_epochs=1.0, num_samples=2_000_000)


def test_weights_that_sum_to_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="weight above 0"):
        mixture_shares([SourceSize("a", 0.0, 10, 10), SourceSize("b", 1.0, 0, 0)], 0.3)


@pytest.mark.parametrize("start", [0, 77, 3_000_000_001])
def test_any_stretch_of_samples_has_the_mixture(start: int) -> None:
    shares = mixture_shares(SOURCES, 0.3)
    schedule = MixtureSchedule(shares)
    source, _ = schedule.locate(np.arange(start, start + NUM_SLOTS))
    error = np.bincount(source, minlength=3) / NUM_SLOTS - shares
    assert np.abs(error).max() <= 1e-4
    short, _ = schedule.locate(np.arange(start, start + 1000))
    assert np.abs(np.bincount(short, minlength=3) / 1000 - shares).max() < 0.003


def test_draws_of_each_source_count_up_without_a_gap() -> None:
    schedule = MixtureSchedule(mixture_shares(SOURCES, 0.3))
    source, draw = schedule.locate(np.arange(3 * NUM_SLOTS))
    for index in range(3):
        own = draw[source == index]
        assert np.array_equal(own, np.arange(own.size))


def test_hundred_sources_and_tiny_shares_fill_the_schedule() -> None:
    shares = np.concatenate([np.full(99, 1e-9), [1 - 99e-9]])
    schedule = MixtureSchedule(shares)
    assert schedule.slots.sum() == NUM_SLOTS
    assert (schedule.slots[:99] == 1).all()


def test_more_sources_than_fit_give_way_where_there_is_most() -> None:
    shares = np.concatenate([np.full(NUM_SLOTS - 10, 1e-9), [0.7, 0.3]])
    slots = MixtureSchedule(shares / shares.sum()).slots
    assert slots.sum() == NUM_SLOTS and slots.min() == 1


def test_mixture_is_described_in_epochs() -> None:
    lines = describe_mixture(SOURCES, mixture_shares(SOURCES, 0.0), 300_000)
    assert [line.split()[-1] for line in lines] == ["epochs", "0.10", "2.00", "100.00"]
