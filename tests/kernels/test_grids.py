"""Whole numbers of a launch against Triton's own."""

import pytest

from disentangled.kernels.grids import ceil_div, power_of_2_from

triton = pytest.importorskip("triton")


def test_numbers_are_those_of_triton() -> None:
    for total in range(-70, 70):
        for size in (1, 2, 3, 16, 64):
            assert ceil_div(total, size) == triton.cdiv(total, size)
    for number in range(1, 2100):
        assert power_of_2_from(number) == triton.next_power_of_2(number)
