"""unigram_entropy.py against values worked out by hand."""

import math

import numpy as np
import pytest

from disentangled.data_prep.unigram_entropy import unigram_cross_entropy_nats, unigram_entropy_nats


def test_entropy_of_equal_counts_is_the_logarithm_of_their_number():
    assert unigram_entropy_nats(np.array([7, 7, 0, 7, 7])) == pytest.approx(math.log(4), rel=1e-12)


def test_entropy_of_one_piece_is_zero():
    assert unigram_entropy_nats(np.array([0, 5, 0])) == 0.0


def test_cross_entropy_adds_one_to_every_training_count():
    # q = (3 + 1, 1 + 1, 0 + 1) / (4 + 3), p = (1/2, 0, 1/2)
    expected = -0.5 * math.log(4 / 7) - 0.5 * math.log(1 / 7)
    assert unigram_cross_entropy_nats(np.array([2, 0, 2]), np.array([3, 1, 0])) == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_is_at_least_the_entropy():
    draw = np.random.default_rng(0)
    counts, training = draw.integers(0, 50, 100), draw.integers(0, 50, 100)
    assert unigram_cross_entropy_nats(counts, training) > unigram_entropy_nats(counts)
