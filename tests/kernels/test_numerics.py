"""The error rule itself: it lets rounding pass and nothing else."""

import pytest
import torch

from tests.numerics import assert_no_worse_than_eager

EXACT = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
EAGER = EXACT.float() * (1 + 2**-22)


def test_rule_accepts_eager_itself_and_the_rounded_answer() -> None:
    assert_no_worse_than_eager(EAGER, EAGER, EXACT)
    assert_no_worse_than_eager(EXACT.float(), EAGER, EXACT)
    assert_no_worse_than_eager(EXACT.float() * (1 + 2**-23), EXACT.float(), EXACT)  # the floor


def test_rule_refuses_an_error_spread_over_all_elements() -> None:
    with pytest.raises(AssertionError, match="root_mean_square"):
        assert_no_worse_than_eager(EXACT.float() * (1 + 2**-20), EAGER, EXACT)


def test_rule_refuses_one_wrong_element_that_the_mean_would_hide() -> None:
    wrong = EAGER.clone()
    wrong[7] += 5e-6
    with pytest.raises(AssertionError, match="largest of the error"):
        assert_no_worse_than_eager(wrong, EAGER, EXACT)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_rule_refuses_what_is_not_finite(value: float) -> None:
    wrong = EAGER.clone()
    wrong[7] = value
    with pytest.raises(AssertionError, match="not finite"):
        assert_no_worse_than_eager(wrong, EAGER, EXACT)


def test_rule_refuses_another_shape_or_dtype() -> None:
    with pytest.raises(AssertionError):
        assert_no_worse_than_eager(EAGER[:5], EAGER, EXACT)
    with pytest.raises(AssertionError, match="bfloat16"):
        assert_no_worse_than_eager(EAGER.bfloat16(), EAGER, EXACT)
