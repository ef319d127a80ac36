"""Which tokens the generator must predict.

What: in each row exactly round(probability * candidates) tokens, at least one, uniformly among those that are not
special; every chosen token becomes [MASK] (arXiv 2111.09543 section A.4: 15 %, always [MASK]). A token's draw is keyed
by its sample and place, so a mask depends on neither rank, worker nor micro-batch, and differs between epochs.
Differs from the original code, which picks one token in each window of six from the left and so never masks a row's
last tenth.
Used by: trainer/batch.py. Tested by tests/trainer/test_masking.py.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from disentangled.kernels.counter_rng import random_words


def choose_masked_tokens(
    row: NDArray[np.int64],
    sample: NDArray[np.int64],
    token: NDArray[np.int64],
    is_candidate: NDArray[np.bool_],
    *,
    probability: float,
    seed: int,
    stream: int,
) -> NDArray[np.int64]:
    """Flat indices, ascending, of the tokens to mask.

    Args:
        row: [T] number of the row each token stands in (any ascending numbering).
        sample, token: [T] the row's global sample index and the token's place in it: what keys the draw.
        is_candidate: [T], False for special tokens.
    """
    flat = np.flatnonzero(is_candidate)
    if flat.size == 0:
        return flat
    words = random_words(
        seed, stream, sample=torch.from_numpy(sample[flat]), token=torch.from_numpy(token[flat]), element=0
    ).numpy()
    order = np.lexsort((words[:, 1], words[:, 0], row[flat]))  # within each row by two random words
    sorted_rows = row[flat][order]
    first_of_row = np.flatnonzero(np.diff(sorted_rows, prepend=sorted_rows[0] - 1))
    candidates = np.diff(first_of_row, append=flat.size)
    quota = np.maximum(1, np.rint(probability * candidates)).astype(np.int64)
    rank = np.arange(flat.size) - np.repeat(first_of_row, candidates)
    return np.sort(flat[order[rank < np.repeat(quota, candidates)]])
