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

from disentangled.trainer.hashing import GOLDEN_32, hash_words, mix, mix_32

MaskingUnit = Literal["token", "word", "span", "windowed_legacy"]
MASKING_UNITS: tuple[str, ...] = get_args(MaskingUnit)
SPAN_STOP = 0.2
# Scripts without spaces have words of a sentence's length: one of more pieces than this is several units.
MAX_WORD_PIECES = 10
# what a hash is for
CHOICE, GLUE, SHOWN = 0, 1, 2
PLACE_BITS = 16
LARGEST = np.uint32(0xFFFFFFFF)


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
    if not is_candidate.any():
        return np.zeros_like(is_candidate)
    if rule.unit == "windowed_legacy":
        return _choose_in_windows(is_candidate, sample, rule.probability, seed, stream)
    quota = np.maximum(1, np.rint(rule.probability * is_candidate.sum(axis=1))).astype(np.int64)
    row_seeds = hash_words(seed, stream, CHOICE, sample)
    if rule.unit == "token":
        return _choose_tokens(is_candidate, row_seeds, quota)
    assert is_word_start is not None, "units of words need to know where words begin"
    follows = _follows_candidate(is_candidate)
    starts, sizes = _words(is_candidate, is_word_start, follows)
    if rule.unit == "span":
        glue_seeds = hash_words(seed, stream, GLUE, sample)
        starts, sizes = _spans(starts, sizes, follows, glue_seeds, rule.max_span_words)
    return _choose_units(starts, sizes, row_seeds, quota)


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
    draws = _draws(hash_words(seed, stream, SHOWN, sample)[row], place)
    share = draws * 2.0**-32
    first, stop = pieces
    # A number below stop - first, as the high half of a product.
    other = first + ((mix_32(draws.copy()).astype(np.uint64) * np.uint64(stop - first)) >> np.uint64(32)).astype(
        np.int64
    )
    return np.where(share < rule.mask_share, mask_id, np.where(share < rule.mask_share + rule.random_share, other, ids))


def _draws(row_seeds: NDArray[np.uint64], place: NDArray[np.int64]) -> NDArray[np.uint32]:
    """A random word for each place of a row; both broadcast."""
    words: NDArray[np.uint32] = mix_32(row_seeds.astype(np.uint32) + place.astype(np.uint32) * GOLDEN_32)
    words ^= (row_seeds >> np.uint64(32)).astype(np.uint32)
    return words


def _choose_tokens(
    is_candidate: NDArray[np.bool_], row_seeds: NDArray[np.uint64], quota: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """The candidates with the smallest words, `quota` of each row."""
    words = np.where(is_candidate, _draws(row_seeds[:, None], np.arange(is_candidate.shape[1])), LARGEST)
    last = np.take_along_axis(_smallest(words, int(quota.max())), quota[:, None] - 1, axis=1)
    chosen: NDArray[np.bool_] = (words <= last) & is_candidate
    # Two words of a row are equal once in some 10^7 rows, at the quota's end: the later place goes.
    for row in np.flatnonzero(chosen.sum(axis=1) > quota).tolist():
        ties = np.flatnonzero(chosen[row] & (words[row] == last[row]))
        chosen[row, ties[quota[row] - chosen[row].sum() :]] = False
    return chosen


def _smallest(words: NDArray[np.uint32], number: int) -> NDArray[np.uint32]:
    """The `number` smallest of each row, ascending."""
    return np.sort(np.partition(words, number - 1, axis=1)[:, :number], axis=1)


def _words(
    is_candidate: NDArray[np.bool_], is_word_start: NDArray[np.bool_], follows: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Where words begin [B, T], and their tokens, at the place of the first one [B * T]; elsewhere it means nothing.

    A word does not go on behind what is no candidate. Parts of words that are too long count as words.
    """
    starts = is_candidate & (is_word_start | ~follows)
    edges = starts | (follows & ~is_candidate)  # where a word begins or ends
    edges[:, 0] = True
    places = np.flatnonzero(edges)
    sizes = np.zeros(edges.size, dtype=np.int64)
    sizes[places] = np.diff(places, append=edges.size)
    too_long = np.flatnonzero((sizes > MAX_WORD_PIECES) & starts.ravel())
    if too_long.size:
        parts = -(-sizes[too_long] // MAX_WORD_PIECES)
        part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        places = np.repeat(too_long, parts) + part * MAX_WORD_PIECES
        sizes[places] = np.minimum(MAX_WORD_PIECES, np.repeat(sizes[too_long], parts) - part * MAX_WORD_PIECES)
        starts.ravel()[places] = True
    return starts, sizes


def _spans(
    starts: NDArray[np.bool_],
    sizes: NDArray[np.int64],
    follows: NDArray[np.bool_],
    row_seeds: NDArray[np.uint64],
    most_words: int,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Neighbouring words joined, until one stops a span or there are `most_words`: as _words gives words."""
    words = np.flatnonzero(starts)
    stops = _draws(row_seeds[:, None], np.arange(starts.shape[1])) < np.uint32(SPAN_STOP * 2**32)
    begins = (stops | ~follows).ravel()[words]
    number = np.arange(words.size)
    since = number - np.maximum.accumulate(np.where(begins, number, 0))
    spans = np.flatnonzero(since % most_words == 0)
    joined, places = np.zeros_like(starts), words[spans]
    joined.ravel()[places] = True
    sizes[places] = np.add.reduceat(sizes[words], spans)
    return joined, sizes


def _follows_candidate(is_candidate: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether the token before, in the same row, is a candidate."""
    follows = np.zeros_like(is_candidate)
    follows[:, 1:] = is_candidate[:, :-1]
    return follows


def _choose_units(
    starts: NDArray[np.bool_], sizes: NDArray[np.int64], row_seeds: NDArray[np.uint64], quota: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Units in random order, to the quota of each row.

    The last, of which only a part is within the quota, is taken with that part as its probability: the quota is then
    the mean of what is taken.
    """
    num_rows, row_tokens = starts.shape
    if row_tokens > 1 << PLACE_BITS:
        raise ValueError(f"rows of {row_tokens} tokens: words are masked in rows of at most {1 << PLACE_BITS}")
    # The place in the low bits: sorting words sorts places, and no two of a row are equal.
    low = np.uint32((1 << (row_tokens - 1).bit_length()) - 1)
    words = (_draws(row_seeds[:, None], np.arange(row_tokens)) >> np.uint32(1)) & ~low
    words |= np.arange(row_tokens, dtype=np.uint32)
    # All else behind them, as different words: what is equal slows a partition down.
    words |= (~starts).astype(np.uint32) << np.uint32(31)
    words = _smallest(words, min(int(quota.max()), row_tokens))  # no row needs more units than tokens
    exists = words < np.uint32(1 << 31)
    first = np.where(exists, words & low, 0) + np.arange(num_rows)[:, None] * row_tokens
    size = np.where(exists, sizes[first], 0)
    before = np.cumsum(size, axis=1) - size
    chance = (mix(row_seeds) >> np.uint64(11)).astype(np.float64)[:, None] * 2.0**-53
    taken = exists & (before + chance * size < quota[:, None])
    begin, length = first[taken], size[taken]
    chosen = np.zeros(starts.size, dtype=bool)
    chosen[np.arange(length.sum()) + np.repeat(begin - (np.cumsum(length) - length), length)] = True
    return chosen.reshape(starts.shape)


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
