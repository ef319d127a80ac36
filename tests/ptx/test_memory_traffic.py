"""The count of turns of memory: known accesses, and a table with a row for each kernel."""

import numpy as np
import pytest

from tests.ptx.test_compiled_kernels import run_compiled

pytest.importorskip("triton")
from tests.ptx.memory_traffic import shared_turns

LANE = np.arange(32)


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (4 * LANE, 4, 1),
        (8 * LANE, 4, 2),
        (128 * LANE, 4, 32),
        (0 * LANE, 4, 1),
        (2 * LANE, 2, 1),
        (8 * LANE, 8, 2),
        (16 * LANE, 16, 4),
        (128 * LANE[:8], 16, 8),
    ],
    ids=["words", "every other", "one bank", "one word", "halves", "double", "wide", "rows of a matrix"],
)
def test_shared_memory_takes_a_turn_for_each_word_of_a_bank(addresses: np.ndarray, size: int, expected: int) -> None:
    assert shared_turns(addresses, size) == expected


def test_the_table_has_a_row_for_each_kernel() -> None:
    head, *rows = run_compiled("memory_traffic", "90", "64").splitlines()
    assert head.split()[0] == "kernel"
    counts = {row[:16].strip(): [int(word.replace(",", "")) for word in row[16:].split()] for row in rows}
    assert counts.keys() == {"expand", "forward", "row", "key_value", "query", "table_gradient", "fold"}
    instructions, barriers, least, most, shared = counts["forward"]
    # Q, K, V, O and two windows of a table are 64 KiB; two bands are stored, and read along a diagonal, 2 bytes a lane
    assert instructions > 1000 and barriers > 4 * 2
    assert 64 * 1024 / 128 <= least <= most
    assert shared > (2 * 64 * 128 * 2) / 128 + 2 * 64 * 64 / 32
