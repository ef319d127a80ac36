"""Which tokens the generator must predict, and what it sees in their place.

What: in each row round(probability * candidates) tokens, or one; candidates are all tokens but special ones. They are
chosen in units: single tokens ("token": the count is exact), whole words ("word"), or spans of whole words whose
number is geometric with mean 1 / SPAN_STOP, cut at max_span_words ("span", arXiv 1907.10529 section 3.1). Units come in
random order until the quota is met, on average: a row of long words may have none. "windowed_legacy" is the original
code's rule: one token in each window of six from the left until the quota, so never any of the last tenth of a row.
Every chosen token becomes [MASK] (arXiv 2111.09543 section A.4), unless mask_share says that some stay or become
another piece (arXiv 1810.04805 section 3.1: 0.8, 0.1, 0.1).
A draw is keyed by seed, stream, sample and place in the row: it depends on neither rank, worker nor micro-batch, and
differs between epochs.
Used by: trainer/batch.py. Tested by tests/trainer/test_masking.py.
Not here: which pieces begin a word (word_starts.py).
"""

# B rows  T tokens in a row

import math
import random
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from disentangled.trainer.hashing import GOLDEN, hash_words, mix

MaskingUnit = Literal["token", "word", "span", "windowed_legacy"]
MASKING_UNITS: tuple[str, ...] = get_args(MaskingUnit)
SPAN_STOP = 0.2
# Scripts without spaces have words of a sentence's length: one of more pieces than this is several units.
MAX_WORD_PIECES = 10
# what a hash is for
CHOICE, GLUE, SHOWN = 0, 1, 2
PLACE_BITS = 16


@dataclass(frozen=True)
class MaskingRule:
    """How much is masked and how.

    mask_share of the chosen tokens become [MASK], random_share another piece, the rest stay as they are.
    """

    probability: float = 0.15
    unit: MaskingUnit = "token"
    max_span_words: int = 10
    mask_share: float = 1.0
    random_share: float = 0.0


def choose_masked(
    is_candidate: NDArray[np.bool_],
    is_word_start: NDArray[np.bool_] | None,
    sample: NDArray[np.int64],
    rule: MaskingRule,
    *,
    seed: int,
    stream: int,
) -> NDArray[np.bool_]:
    """Which tokens to mask: bool [B, T].

    Args:
        is_candidate: [B, T], False for special tokens and padding.
        is_word_start: [B, T], True where a word or a document begins; only words and spans need it.
        sample: [B], the rows' global sample indices.
    """
    if rule.unit == "windowed_legacy":
        return _choose_in_windows(is_candidate, sample, rule.probability, seed, stream)
    quota = np.maximum(1, np.rint(rule.probability * is_candidate.sum(axis=1))).astype(np.int64)
    keys = _token_hashes(sample, is_candidate.shape[1], seed, stream, CHOICE)
    if rule.unit == "token":
        return _choose_tokens(is_candidate, keys, quota)
    assert is_word_start is not None, "units of words need to know where words begin"
    starts = _unit_starts(is_candidate, is_word_start, MAX_WORD_PIECES)
    if rule.unit == "span":
        goes_on = _token_hashes(sample, is_candidate.shape[1], seed, stream, GLUE) >= np.uint64(SPAN_STOP * 2**64)
        starts = _join_words(is_candidate, starts, goes_on, rule.max_span_words)
    return _choose_units(is_candidate, starts, keys, quota)


def shown_ids(
    ids: NDArray[np.int64],
    row: NDArray[np.int64],
    place: NDArray[np.int64],
    sample: NDArray[np.int64],
    rule: MaskingRule,
    *,
    mask_id: int,
    pieces: tuple[int, int],
    seed: int,
    stream: int,
) -> NDArray[np.int64]:
    """What the generator sees at the masked tokens [M]: [MASK], another piece, or the token itself.

    Args:
        ids, row, place: [M], the masked tokens, the row and the place in it that they stand at.
        sample: [B], the rows' global sample indices.
        pieces: first id of an ordinary piece, and one past the last.
    """
    if rule.mask_share >= 1.0:
        return np.full(ids.size, mask_id, dtype=np.int64)
    draws = hash_words(seed, stream, SHOWN, sample[row], place)
    share = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53
    first, stop = pieces
    other = first + (mix(draws + GOLDEN) % np.uint64(stop - first)).astype(np.int64)
    return np.where(share < rule.mask_share, mask_id, np.where(share < rule.mask_share + rule.random_share, other, ids))


def _token_hashes(
    sample: NDArray[np.int64], row_tokens: int, seed: int, stream: int, purpose: int
) -> NDArray[np.uint64]:
    """A random word for each token of each row [B, T]."""
    steps = np.arange(1, row_tokens + 1, dtype=np.uint64) * GOLDEN
    return mix(hash_words(seed, stream, purpose, sample)[:, None] + steps)


def _choose_tokens(
    is_candidate: NDArray[np.bool_], keys: NDArray[np.uint64], quota: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """The candidates with the smallest keys, `quota` of each row."""
    keys = np.where(is_candidate, keys, np.uint64(0xFFFFFFFFFFFFFFFF))
    partly_sorted = np.partition(keys, np.unique(quota) - 1, axis=1)  # in place at those columns
    last = np.take_along_axis(partly_sorted, quota[:, None] - 1, axis=1)
    chosen: NDArray[np.bool_] = (keys <= last) & is_candidate
    return chosen


def _unit_starts(
    is_candidate: NDArray[np.bool_], is_word_start: NDArray[np.bool_], most_pieces: int
) -> NDArray[np.bool_]:
    """Where units begin: with a word, after what is no candidate, and within words that are too long."""
    starts = is_candidate & (is_word_start | ~_follows_candidate(is_candidate))
    places = np.arange(is_candidate.shape[1])
    since: NDArray[np.int64] = places - np.maximum.accumulate(np.where(starts, places, 0), axis=1)
    return starts | (is_candidate & (since % most_pieces == 0))


def _join_words(
    is_candidate: NDArray[np.bool_], starts: NDArray[np.bool_], goes_on: NDArray[np.bool_], most_words: int
) -> NDArray[np.bool_]:
    """Where spans begin: at words that the one before does not go on to; no span has more than `most_words`."""
    breaks = starts & (~goes_on | ~_follows_candidate(is_candidate))
    word = np.cumsum(starts, axis=1)
    since: NDArray[np.int64] = word - np.maximum.accumulate(np.where(breaks, word, 0), axis=1)
    return starts & (since % most_words == 0)


def _follows_candidate(is_candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the token before is a candidate: units do not reach over special tokens."""
    follows = np.zeros_like(is_candidate)
    follows[:, 1:] = is_candidate[:, :-1]
    return follows


def _choose_units(
    is_candidate: NDArray[np.bool_],
    starts: NDArray[np.bool_],
    keys: NDArray[np.uint64],
    quota: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Units in the order of their first token's key, to the quota. The last, of which only a part is within the quota,
    is taken with that part as its probability: the quota is then the mean of what is taken.
    """
    num_rows, row_tokens = starts.shape
    if row_tokens > 1 << PLACE_BITS:
        raise ValueError(f"rows of {row_tokens} tokens: words are masked in rows of at most {1 << PLACE_BITS}")
    unit = np.cumsum(starts, axis=1) + np.arange(num_rows)[:, None] * (row_tokens + 1)
    unit[~is_candidate] = 0
    sizes = np.bincount(unit.ravel(), minlength=num_rows * (row_tokens + 1) + 1)
    # The place in the low bits: sorting keys sorts places, and no two keys are equal.
    low = np.uint64((1 << PLACE_BITS) - 1)
    keyed = np.where(starts, (keys & ~low) | np.arange(row_tokens, dtype=np.uint64), np.uint64(0xFFFFFFFFFFFFFFFF))
    keyed.sort(axis=1)
    exists = np.arange(row_tokens) < starts.sum(axis=1)[:, None]
    place = np.where(exists, keyed & low, 0).astype(np.int64)
    in_order = np.take_along_axis(unit, place, axis=1)
    size = np.where(exists, sizes[in_order], 0)
    total = np.cumsum(size, axis=1)
    chance = (mix(keys[:, :1]) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    taken = exists & (total - size + chance * size < quota[:, None])
    is_chosen = np.zeros(sizes.size, dtype=bool)
    is_chosen[in_order[taken]] = True
    chosen: NDArray[np.bool_] = is_chosen[unit] & is_candidate
    return chosen


def _choose_in_windows(
    is_candidate: NDArray[np.bool_], sample: NDArray[np.int64], probability: float, seed: int, stream: int
) -> NDArray[np.bool_]:
    chosen = np.zeros_like(is_candidate)
    seeds = hash_words(seed, stream, CHOICE, sample).tolist()
    # The original counts [CLS] and [SEP] among the tokens of a row, which holds one document.
    for row, number in enumerate(seeds):
        candidates = np.flatnonzero(is_candidate[row])
        picks = choose_in_windows(candidates.size, is_candidate.shape[1], probability, random.Random(number))
        chosen[row, candidates[picks]] = True
    return chosen


def choose_in_windows(num_candidates: int, row_tokens: int, probability: float, rng: random.Random) -> list[int]:
    """The original code's choice among the candidates of a row of one document, draw for draw (max_gram 1).

    From windows of floor(1 / probability) candidates one each, from the left, until round(probability * tokens) are
    chosen, [CLS] and [SEP] counted as tokens (microsoft/DeBERTa at 4d7fe0b, DeBERTa/apps/tasks/mlm_task.py).
    """
    window = int(1 / probability)
    most = math.ceil(row_tokens * probability / 10) * 10
    quota = min(most, max(1, round((num_candidates + 2) * probability)))
    picks = []
    for start in range(0, num_candidates, window):
        rng.random()  # the length of an n-gram, which is always 1
        picks.append(start + rng.randint(0, min(window, num_candidates - start) - 1))
    return picks[:quota]
