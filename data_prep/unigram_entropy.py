"""Entropies of the unigram distribution: what a model that knows only how frequent the pieces are would lose.

The masked-language-model loss on held-out text is read beside the cross-entropy: a model that stays at it has learnt
word frequencies and nothing of the context.

Shapes: counts [num_pieces] int64, how often each id occurs.
Used by: build_corpus.py. Tested by: tests/data_prep/test_unigram_entropy.py.
"""

import numpy as np
import numpy.typing as npt


def unigram_entropy_nats(counts: npt.NDArray[np.int64]) -> float:
    """Return H = -sum p log p in nats per token, with p the relative frequencies of counts."""
    frequencies = counts[counts > 0] / counts.sum()
    return float(-np.sum(frequencies * np.log(frequencies)))


def unigram_cross_entropy_nats(counts: npt.NDArray[np.int64], training_counts: npt.NDArray[np.int64]) -> float:
    """Return -sum p log q in nats per token: p the frequencies of counts, q those of training_counts plus one each.

    The added one keeps the result finite for a piece that training never saw.
    """
    smoothed = (training_counts + 1) / (training_counts.sum() + len(training_counts))
    return float(-np.sum(counts / counts.sum() * np.log(smoothed)))
