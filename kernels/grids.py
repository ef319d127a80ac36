"""Whole numbers of a launch in plain Python: triton.cdiv and triton.next_power_of_2, made for programs, take 4 us each.

Used by: the launchers of kernels/. Tested by: tests/kernels/test_grids.py.
"""


def ceil_div(total: int, size: int) -> int:
    """The least whole number that is not below total / size."""
    return -(-total // size)


def power_of_2_from(number: int) -> int:
    """The smallest power of two that is not below number, which is 1 or more."""
    return 1 << (number - 1).bit_length()
