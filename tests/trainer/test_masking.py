import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.kernels.counter_rng import Stream
from disentangled.trainer.masking import choose_masked_tokens

ROWS, TOKENS = 2000, 100


def choose(
    row: NDArray[np.int64],
    token: NDArray[np.int64],
    is_candidate: NDArray[np.bool_],
    sample: NDArray[np.int64] | None = None,
    **changes: int,
) -> NDArray[np.int64]:
    keywords = {"seed": 1, "stream": Stream.MASKING} | changes
    sample = row + 1000 if sample is None else sample
    return choose_masked_tokens(row, sample, token, is_candidate, probability=0.15, **keywords)


def full_rows(num_rows: int = ROWS) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of TOKENS tokens, the first and the last of which are special."""
    row, token = np.divmod(np.arange(num_rows * TOKENS), TOKENS)
    return row, token, (token > 0) & (token < TOKENS - 1)


def test_choose_masked_tokens_takes_the_exact_quota_of_every_row() -> None:
    row, token, is_candidate = full_rows()
    chosen = choose(row, token, is_candidate)
    assert np.array_equal(np.bincount(row[chosen]), np.full(ROWS, round(0.15 * (TOKENS - 2))))


@pytest.mark.parametrize(("candidates", "quota"), [(1, 1), (3, 1), (9, 1), (11, 2), (23, 3), (50, 8)])
def test_choose_masked_tokens_rounds_and_takes_at_least_one(candidates: int, quota: int) -> None:
    # 0.15 * 50 = 7.5 rounds to even, 8
    row, token = np.zeros(candidates, np.int64), np.arange(candidates)
    assert choose(row, token, np.ones(candidates, bool)).size == quota


def test_choose_masked_tokens_is_ascending_distinct_and_never_special() -> None:
    row, token, is_candidate = full_rows()
    is_candidate &= np.random.default_rng(0).random(row.size) < 0.7
    chosen = choose(row, token, is_candidate)
    assert np.all(np.diff(chosen) > 0)
    assert is_candidate[chosen].all()


def test_choose_masked_tokens_is_uniform_over_positions() -> None:
    # Each position is masked Binomial(ROWS, p) times: chi-square / df is near 1 with a deviation of sqrt(2 / 97). The
    # quota makes positions repel each other a little, which lowers the variance by p and so the mean to 1 - p.
    row, token, is_candidate = full_rows()
    counts = np.bincount(token[choose(row, token, is_candidate)], minlength=TOKENS)[1:-1]
    p = round(0.15 * (TOKENS - 2)) / (TOKENS - 2)
    chi_square = ((counts - ROWS * p) ** 2 / (ROWS * p * (1 - p))).sum() / (TOKENS - 3)
    assert abs(chi_square - 1) < 4 * np.sqrt(2 / (TOKENS - 3))
    last_tenth = counts[-(TOKENS // 10) :].mean() / ROWS
    assert last_tenth == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / ROWS / (TOKENS // 10)))


def test_choose_masked_tokens_does_not_depend_on_the_batch() -> None:
    row, token, is_candidate = full_rows(64)
    together = choose(row, token, is_candidate)
    apart = []
    for first in range(0, 64, 16):
        part = (row >= first) & (row < first + 16)
        # rows are numbered anew in each batch; the sample index is what stays
        chosen = choose(row[part] - first, token[part], is_candidate[part], sample=row[part] + 1000)
        apart.append(chosen + first * TOKENS)
    assert np.array_equal(np.concatenate(apart), together)


@pytest.mark.parametrize("change", [{"seed": 2}, {"stream": Stream.EVALUATION_MASKING}])
def test_choose_masked_tokens_follows_seed_and_stream(change: dict[str, int]) -> None:
    row, token, is_candidate = full_rows(100)
    common = np.intersect1d(choose(row, token, is_candidate), choose(row, token, is_candidate, **change))
    assert common.size / (100 * 15) < 0.25  # 0.15 by chance


def test_choose_masked_tokens_differs_between_samples() -> None:
    row, token, is_candidate = full_rows(100)
    first = choose(row, token, is_candidate)
    next_epoch = choose(row, token, is_candidate, sample=row + 5_000_000_000)
    assert np.intersect1d(first, next_epoch).size / first.size < 0.25


def test_choose_masked_tokens_of_no_candidates_is_empty() -> None:
    row, token, _ = full_rows(2)
    assert choose(row, token, np.zeros(row.size, bool)).size == 0
    assert choose(row[:0], token[:0], np.zeros(0, bool)).size == 0
