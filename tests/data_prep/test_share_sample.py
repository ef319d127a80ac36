"""share_sample.py against shares worked out by hand."""

import pytest

from disentangled.data_prep.share_sample import share_bytes

PLENTY = [10**9] * 3


@pytest.mark.parametrize(("alpha", "expected"), [(1.0, [16, 4, 1]), (0.5, [12, 6, 3]), (0.0, [7, 7, 7])])
def test_shares_follow_size_to_the_power_of_alpha(alpha: float, expected: list[int]):
    assert share_bytes(21, [1600, 400, 100], PLENTY, [1, 1, 1], alpha) == expected


def test_weights_multiply_the_shares():
    assert share_bytes(1000, [100, 100, 100], PLENTY, [1, 3, 0], 0.3) == [250, 750, 0]


def test_what_a_source_does_not_have_goes_to_the_others():
    # of 300, the first has 10 of its 100; the others share 290, of which the second has 120 of its 145
    assert share_bytes(300, [5, 5, 5], [10, 120, 1000], [1, 1, 1], 0.0) == [10, 120, 170]
    assert share_bytes(300, [5, 5, 5], [10, 20, 30], [1, 1, 1], 0.0) == [10, 20, 30]


def test_one_source_gets_all_and_an_empty_one_nothing():
    assert share_bytes(300, [10**12], [10**9], [0.1], 0.3) == [300]
    assert share_bytes(300, [0, 7], [0, 10**9], [1, 1], 0.0) == [0, 300]
    assert share_bytes(300, [0, 0], [0, 0], [1, 1], 0.0) == [0, 0]
