import numpy as np
import pytest
from numpy.typing import NDArray

from disentangled.trainer.packing import PackedWindows, cut_documents, pack_best_fit, pack_windows


def offsets_of(lengths: list[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def realistic_lengths(num_documents: int) -> NDArray[np.int64]:
    """Lengths of web documents in tokens: log-normal, median 300, some empty."""
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.normal(np.log(300), 1.1, num_documents)).astype(np.int64)
    lengths[draw.random(num_documents) < 0.01] = 0
    return lengths


def windows_of(plan: PackedWindows) -> list[list[tuple[int, int]]]:
    """(start, length) of each piece of each window."""
    bounds = zip(plan.first_piece[:-1], plan.first_piece[1:], strict=True)
    return [list(zip(plan.start[a:b].tolist(), plan.length[a:b].tolist(), strict=True)) for a, b in bounds]


def test_pack_windows_of_typed_out_documents() -> None:
    # rows of 8 hold pieces of at most 6 tokens, each costing 2 more; the document of 13 is cut 6 + 6 + 1, the 1 dropped
    plan = pack_windows(offsets_of([3, 0, 13, 2, 1]), sequence_length=8, minimum_piece_tokens=2)
    assert windows_of(plan) == [[(3, 6)], [(9, 6)], [(0, 3), (18, 1)], [(16, 2)]]


def test_pack_windows_keeps_a_leftover_of_the_minimum_length() -> None:
    plan = pack_windows(offsets_of([14]), sequence_length=8, minimum_piece_tokens=2)
    assert windows_of(plan) == [[(0, 6)], [(6, 6)], [(12, 2)]]


@pytest.mark.parametrize("sequence_length", [16, 128, 512])
def test_pack_windows_covers_every_token_once_but_dropped_leftovers(sequence_length: int) -> None:
    lengths, minimum = realistic_lengths(3000), 8
    offsets = offsets_of(lengths)
    plan = pack_windows(offsets, sequence_length, minimum)
    times_covered = np.zeros(offsets[-1], dtype=np.int64)
    for window in windows_of(plan):
        assert sum(length + 2 for _, length in window) <= sequence_length
        for start, length in window:
            times_covered[start : start + length] += 1
    dropped = np.zeros_like(times_covered)
    for start, length in zip(offsets[:-1], lengths, strict=True):
        leftover = length % (sequence_length - 2)
        if length > sequence_length - 2 and leftover < minimum:
            dropped[start + length - leftover : start + length] = 1
    assert np.array_equal(times_covered + dropped, np.ones_like(times_covered))


def test_pack_windows_never_cuts_a_document_that_fits() -> None:
    lengths = realistic_lengths(3000)
    offsets = offsets_of(lengths)
    plan = pack_windows(offsets, 512, 8)
    whole = set(zip(plan.start.tolist(), plan.length.tolist(), strict=True))
    fitting = [(int(start), int(n)) for start, n in zip(offsets[:-1], lengths, strict=True) if 0 < n <= 510]
    assert len(fitting) > 1000 and whole.issuperset(fitting)


def test_pack_windows_fills_rows_of_512_to_99_percent() -> None:
    plan = pack_windows(offsets_of(realistic_lengths(20_000)), 512, 8)
    fill = (plan.length + 2).sum() / (plan.num_windows * 512)
    assert fill >= 0.99


def test_pack_windows_is_deterministic() -> None:
    one, two = (pack_windows(offsets_of(realistic_lengths(5000)), 128, 8) for _ in range(2))
    assert windows_of(one) == windows_of(two)


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_pack_windows_of_nothing_is_empty(lengths: list[int]) -> None:
    plan = pack_windows(offsets_of(lengths), 512, 8)
    assert plan.num_windows == 0 and windows_of(plan) == []


def test_pack_windows_packs_pieces_of_one_group_together() -> None:
    # 4096 pieces fill a group and leave room in every row; the piece that would fit there belongs to the next group
    plan = pack_windows(offsets_of([8] * 4096 + [4]), 16, 1)
    assert windows_of(plan)[4095:] == [[(4095 * 8, 8)], [(4096 * 8, 4)]]


def test_cut_documents_gives_pieces_in_document_order() -> None:
    starts, lengths = cut_documents(offsets_of([5, 25, 10]), piece_tokens=10, minimum_piece_tokens=4)
    assert starts.tolist() == [0, 5, 15, 25, 30]
    assert lengths.tolist() == [5, 10, 10, 5, 10]


def test_pack_best_fit_chooses_the_tightest_row() -> None:
    # 6 and 5 open rows with room 4 and 5 of 10; 4 goes where nothing is left over, 3 where 5 was
    assert pack_best_fit(np.array([3, 6, 4, 5]), 10) == [[1, 2], [3, 0]]


def test_concatenate_fills_rows_and_cuts_where_they_are_full() -> None:
    # rows of 8: 3 + 2 specials leave room for 1 token and its specials; 1 + 5 fill the second row
    packed = pack_windows(offsets_of([3, 7, 2]), 8, minimum_piece_tokens=1, packing="concatenate")
    assert windows_of(packed) == [[(0, 3), (3, 1)], [(4, 6)], [(10, 2)]]


def test_concatenate_begins_no_piece_that_is_too_short() -> None:
    packed = pack_windows(offsets_of([3, 7, 2]), 8, minimum_piece_tokens=2, packing="concatenate")
    assert windows_of(packed) == [[(0, 3)], [(3, 6)], [(10, 2)]]  # the leftover of 1 is dropped


@pytest.mark.parametrize("minimum", [1, 8])
def test_concatenate_covers_every_token_but_short_leftovers(minimum: int) -> None:
    offsets = offsets_of(realistic_lengths(500))
    packed = pack_windows(offsets, 128, minimum, packing="concatenate")
    times_covered = np.zeros(offsets[-1], dtype=np.int64)
    for window in windows_of(packed):
        assert window and sum(length + 2 for _, length in window) <= 128
        for start, length in window:
            times_covered[start : start + length] += 1
    assert times_covered.max() == 1
    assert (times_covered == 0).sum() <= (minimum - 1) * 500
    assert (packed.length + 2).sum() / (packed.num_windows * 128) > 0.95


def test_one_piece_gives_every_piece_its_row() -> None:
    packed = pack_windows(offsets_of([3, 0, 13, 2, 1]), 8, 2, packing="one_piece")
    assert windows_of(packed) == [[(0, 3)], [(3, 6)], [(9, 6)], [(16, 2)], [(18, 1)]]
