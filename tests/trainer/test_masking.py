import random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.kernels.counter_rng import Stream
from disentangled.trainer.hashing import hash_words
from disentangled.trainer.masking import (
    MAX_WORD_PIECES,
    SPAN_STOP,
    MaskingRule,
    _spans,
    choose_in_windows,
    choose_masked,
    shown_ids,
)

ROWS, TOKENS = 2000, 100
UNITS = ["token", "word", "span", "windowed_legacy"]
SAMPLES = np.arange(ROWS) + 1000


def choose(
    is_candidate: NDArray[np.bool_],
    is_word_start: NDArray[np.bool_] | None = None,
    sample: NDArray[np.int64] = SAMPLES,
    seed: int = 1,
    stream: int = Stream.MASKING,
    **rule: Any,
) -> NDArray[np.bool_]:
    sample = sample[: is_candidate.shape[0]]
    return choose_masked(is_candidate, is_word_start, sample, MaskingRule(**rule), seed=seed, stream=stream)


def full_rows(num_rows: int = ROWS) -> NDArray[np.bool_]:
    """Rows of TOKENS tokens, the first and the last of which are special."""
    is_candidate = np.ones((num_rows, TOKENS), dtype=bool)
    is_candidate[:, [0, -1]] = False
    return is_candidate


def word_starts(num_rows: int = ROWS) -> NDArray[np.bool_]:
    """Words of 1.7 pieces on average."""
    return np.random.default_rng(0).random((num_rows, TOKENS)) < 0.6


def runs(row: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last place of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], row, [False]]).astype(np.int8)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def test_tokens_are_the_exact_quota_of_every_row() -> None:
    is_candidate = full_rows()
    is_candidate[::3, 40:] = False
    quota = np.rint(0.15 * is_candidate.sum(axis=1))
    assert np.array_equal(choose(is_candidate).sum(axis=1), quota)


@pytest.mark.parametrize(("candidates", "quota"), [(1, 1), (3, 1), (9, 1), (11, 2), (23, 3), (50, 8)])
def test_quota_is_rounded_and_at_least_one(candidates: int, quota: int) -> None:
    # 0.15 * 50 = 7.5 rounds to even, 8
    assert choose(np.ones((1, candidates), dtype=bool)).sum() == quota


@pytest.mark.parametrize("unit", UNITS)
def test_special_tokens_are_never_chosen(unit: str) -> None:
    is_candidate = full_rows() & (np.random.default_rng(0).random((ROWS, TOKENS)) < 0.7)
    chosen = choose(is_candidate, word_starts(), unit=unit)
    assert chosen.any(axis=1).mean() > 0.98 and not (chosen & ~is_candidate).any()


@pytest.mark.parametrize("unit", UNITS)
def test_rate_is_the_probability(unit: str) -> None:
    is_candidate = full_rows()
    rate = choose(is_candidate, word_starts(), unit=unit).sum() / is_candidate.sum()
    # 15 % of 98 candidates is 14.7, which rounds to 15; units of words come to that on average
    assert rate == pytest.approx(15 / 98, abs=0.001)


@pytest.mark.parametrize("unit", UNITS)
def test_choice_does_not_depend_on_the_batch(unit: str) -> None:
    is_candidate, starts = full_rows(64), word_starts(64)
    together = choose(is_candidate, starts, unit=unit)
    apart = [
        choose(is_candidate[first : first + 16], starts[first : first + 16], SAMPLES[first:], unit=unit)
        for first in range(0, 64, 16)
    ]
    assert np.array_equal(np.concatenate(apart), together)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"stream": Stream.EVALUATION_MASKING}, {"sample": SAMPLES + 5 * 10**9}]
)
def test_choice_follows_seed_stream_and_sample(unit: str, change: dict[str, Any]) -> None:
    is_candidate, starts = full_rows(200), word_starts(200)
    first, second = choose(is_candidate, starts, unit=unit), choose(is_candidate, starts, unit=unit, **change)
    assert (first & second).sum() / first.sum() < 0.25  # 0.15 by chance


def test_tokens_are_uniform_over_positions() -> None:
    # Each position is masked Binomial(ROWS, p) times: chi-square / df is near 1 with a deviation of sqrt(2 / 97). The
    # quota makes positions repel each other a little, which lowers the variance by p and so the mean to 1 - p.
    counts = choose(full_rows()).sum(axis=0)[1:-1]
    p = 15 / 98
    chi_square = ((counts - ROWS * p) ** 2 / (ROWS * p * (1 - p))).sum() / 97
    assert abs(chi_square - 1) < 4 * np.sqrt(2 / 97)
    last_tenth = counts[-10:].mean() / ROWS
    assert last_tenth == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / ROWS / 10))


@pytest.mark.parametrize("unit", UNITS)
def test_no_candidates_give_an_empty_choice(unit: str) -> None:
    for num_rows in (0, 2):
        nothing = np.zeros((num_rows, TOKENS), dtype=bool)
        assert not choose(nothing, nothing, unit=unit).any()


@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_masked_whole(unit: str) -> None:
    is_candidate, starts = full_rows(300), word_starts(300)
    chosen = choose(is_candidate, starts, unit=unit)
    for row, own_starts in zip(chosen, starts, strict=True):
        word = np.cumsum(own_starts | (np.arange(TOKENS) == 1))
        long = np.bincount(word).max() > MAX_WORD_PIECES
        for number in np.unique(word[row]):
            own = (word == number) & is_candidate[0]
            assert long or row[own].all()


def test_word_does_not_go_on_behind_a_special_token() -> None:
    is_candidate = np.ones((ROWS, 12), dtype=bool)
    is_candidate[:, [0, 5, 6, 11]] = False
    starts = np.zeros_like(is_candidate)  # both documents begin within a word
    chosen = choose(is_candidate, starts, unit="word", probability=0.5)
    first, second = chosen[:, 1:5], chosen[:, 7:11]
    assert np.array_equal(first.all(axis=1), first.any(axis=1)) and np.array_equal(
        first.any(axis=1), ~second.any(axis=1)
    )
    assert 0.4 < first.any(axis=1).mean() < 0.6


def test_very_long_words_are_cut() -> None:
    chosen = choose(np.ones((ROWS, TOKENS), dtype=bool), np.zeros((ROWS, TOKENS), dtype=bool), unit="word")
    assert set(np.unique(chosen.sum(axis=1)).tolist()) == {MAX_WORD_PIECES, 2 * MAX_WORD_PIECES}  # 15 is between
    assert {first % MAX_WORD_PIECES for row in chosen for first, _ in runs(row)} == {0}


def test_spans_have_geometric_lengths_up_to_the_limit() -> None:
    # One span after another covers every row, so the spans that a row's end cuts are left out.
    tokens, most, rows = 1000, 4, 100
    starts, follows = np.ones((2, rows, tokens), dtype=bool)
    follows[:, 0] = False
    joined, sizes = _spans(starts, np.ones(rows * tokens, np.int64), follows, hash_words(1, np.arange(rows)), most)
    first = np.flatnonzero(joined)
    size = sizes[first]
    assert np.array_equal(first, np.cumsum(size) - size) and size.sum() == rows * tokens
    lengths = size[(first + size) % tokens != 0]
    expected = SPAN_STOP * (1 - SPAN_STOP) ** np.arange(most)
    expected[-1] = 1 - expected[:-1].sum()
    share = np.bincount(lengths, minlength=most + 1)[1:] / lengths.size
    assert np.allclose(share, expected, atol=4 * np.sqrt(0.25 / lengths.size))


def test_spans_are_masked_whole() -> None:
    everything = np.ones((500, 1000), dtype=bool)
    chosen = choose(everything, everything, unit="span", probability=0.01)
    lengths = [last - first + 1 for row in chosen for first, last in runs(row)]
    assert 2.5 < np.mean(lengths) < 5  # of geometric spans up to 10 words, 4.5; the last of a row is rather a short one


def test_original_rule_gives_the_originals_choices() -> None:
    # recorded from NGramMaskGenerator.mask_tokens of microsoft/DeBERTa at 4d7fe0b (max_gram 1, mask_prob 1)
    recorded = {
        (34, 64, 7): [2, 7, 17, 23, 29],
        (64, 64, 1): [1, 10, 16, 20, 25, 34, 37, 45, 50, 55],
        (128, 128, 2): [1, 9, 18, 21, 26, 35, 40, 48, 53, 59, 65, 67, 75, 81, 88, 95, 98, 103, 110],
    }
    for (tokens, row_tokens, seed), places in recorded.items():
        picks = choose_in_windows(tokens - 2, row_tokens, 0.15, random.Random(seed))
        assert [pick + 1 for pick in picks] == places
    whole = choose_in_windows(510, 512, 0.15, random.Random(3))
    assert (len(whole), whole[-1] + 1, sum(whole) + len(whole)) == (77, 462, 17831)


def test_original_rule_never_masks_a_rows_last_tenth() -> None:
    is_candidate = np.ones((300, 512), dtype=bool)
    is_candidate[:, [0, -1]] = False
    chosen = choose(is_candidate, unit="windowed_legacy")
    assert (chosen.sum(axis=1) == 77).all()
    assert not chosen[:, 463:].any() and chosen[:, 1:463].any(axis=0).all()


def show(rule: MaskingRule, num_tokens: int = 40_000, seed: int = 1) -> NDArray[np.int64]:
    row, place = np.divmod(np.arange(num_tokens), 400)
    sample = np.arange(row[-1] + 1) + 7
    ids = 5 + np.arange(num_tokens) % 90
    return (
        shown_ids(ids, row, place, sample, rule, mask_id=100, pieces=(4, 100), seed=seed, stream=Stream.MASKING) - ids
    )


def test_every_masked_token_is_shown_as_mask() -> None:
    row = np.zeros(5, dtype=np.int64)
    shown = shown_ids(
        np.arange(5), row, row, row[:1], MaskingRule(), mask_id=9, pieces=(0, 9), seed=1, stream=Stream.MASKING
    )
    assert shown.tolist() == [9] * 5


def test_shares_of_mask_random_and_kept_tokens() -> None:
    ids = 5 + np.arange(40_000) % 90
    shown = show(MaskingRule(mask_share=0.8, random_share=0.1)) + ids
    assert np.mean(shown == 100) == pytest.approx(0.8, abs=0.01)
    assert np.mean(shown == ids) == pytest.approx(0.1 + 0.1 / 96, abs=0.01)
    other = shown[(shown != 100) & (shown != ids)]
    assert other.min() == 4 and other.max() == 99
    assert np.array_equal(show(MaskingRule(mask_share=0.8, random_share=0.1)) + ids, shown)
    assert not np.array_equal(show(MaskingRule(mask_share=0.8, random_share=0.1), seed=2) + ids, shown)
