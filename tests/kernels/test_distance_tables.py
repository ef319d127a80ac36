"""Tables per distance: the slot of every row, the way there (expand) and the way back (fold)."""

from dataclasses import replace

import pytest
import torch

from disentangled.kernels.disentangled_attention.log_bucket import Positions

pytest.importorskip("triton")
from disentangled.kernels.disentangled_attention import attention_call, tile_sizes
from disentangled.kernels.disentangled_attention.distance_tables import distance_table, expand_kernel, fold_kernel

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
EVERY_KIND = [
    Positions(buckets, longest, rule)
    for buckets, longest in ((8, 16), (7, 40), (256, 512), (32, 512), (-1, 24), (0, 200), (2, 3))
    for rule in ("huggingface", "microsoft")
]


@pytest.mark.parametrize("positions", EVERY_KIND, ids=str)
@pytest.mark.parametrize("longest", [1, 37, 5000])
def test_each_row_has_the_slot_of_its_distance(positions: Positions, longest: int) -> None:
    margin = 32
    table = distance_table(positions, longest, margin, DEVICE)
    distances = table.offset - torch.arange(table.num_rows)
    exists = distances.abs() < longest
    slots = positions.slots(longest, longest)  # of the distances 1 - longest .. longest - 1
    assert torch.equal(table.slots.cpu().long()[exists], slots[distances[exists] + longest - 1])
    # Distances without a row, and a margin of rows for tiles that straddle an end, have the slots of the ends.
    is_left, is_right = distances >= table.last_left, distances <= table.last_right
    assert (table.slots.cpu()[is_left] == table.left_slot).all()
    assert (table.slots.cpu()[is_right] == table.right_slot).all()
    assert is_left.sum() == is_right.sum() == margin + 1
    assert (slots[longest - 1 + table.last_left :] == table.left_slot).all()
    assert (slots[: max(0, longest + table.last_right)] == table.right_slot).all()
    # One step further in and the slot is another: a tile is called far as soon as it can be.
    assert table.slots[margin + 1] != table.left_slot
    assert table.slots[-margin - 2] != table.right_slot


@pytest.mark.parametrize("positions", EVERY_KIND, ids=str)
def test_spans_are_the_rows_of_each_slot(positions: Positions) -> None:
    table = distance_table(positions, 100, 32, DEVICE)
    rows = torch.arange(table.num_rows)
    slots = table.slots.cpu()
    assert table.row_spans.shape == (2 * positions.att_span, 2)
    for slot, (first, stop) in enumerate(table.row_spans.tolist()):
        assert torch.equal(slots == slot, (rows >= first) & (rows < stop))


def test_lengths_up_to_a_power_of_two_share_a_table() -> None:
    positions = Positions(8, 16)
    assert distance_table(positions, 33, 32, DEVICE) is distance_table(positions, 64, 32, DEVICE)


@pytest.mark.parametrize("prescale", [1.0, 0.125])
@pytest.mark.parametrize("head_width", [16, 24])
def test_expanded_rows_are_the_rows_of_their_slots(head_width: int, prescale: float) -> None:
    table = distance_table(Positions(8, 16), 40, 16, DEVICE)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(2, 3, 16, 2 * head_width, generator=generator).to(DEVICE)
    rel_key, rel_query = wide[0, ..., ::2], wide[1, ..., ::2]
    expanded = torch.full((2, 3, table.num_rows, head_width), torch.nan, device=DEVICE)
    first_row, stop_row = 5, table.num_rows - 3
    expand_kernel[(-(-(stop_row - first_row) // 16), 3)](
        rel_key, rel_query, expanded, table.slots, *rel_key.stride(), *rel_query.stride(),
        first_row=first_row, stop_row=stop_row, num_rows=table.num_rows, num_heads=3, PRESCALE=prescale,
        HEAD_WIDTH=head_width, BLOCK_H=32, BLOCK_U=16, HAS_C2P=True, HAS_P2C=True,
    )  # fmt: skip
    rows = slice(first_row, stop_row)
    for result, source in zip(expanded, (rel_key, rel_query), strict=True):
        assert torch.equal(result[:, rows], source[:, table.slots[rows].long()] * prescale)
        assert result[:, :first_row].isnan().all()
        assert result[:, stop_row:].isnan().all()


def test_folding_adds_up_what_expanding_spread() -> None:
    """With whole numbers, whose sums are exact: rows of each split, and the far tiles' vectors at the two ends."""
    positions, heads, width, splits, tiles = Positions(8, 16), 2, 16, 3, (2, 5)
    table = distance_table(positions, 40, 16, DEVICE)
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randint(-9, 10, shape, generator=generator).float().to(DEVICE)

    partial = numbers(2, splits, heads, table.num_rows, width)
    ends = numbers(sum(tiles), heads, 2, width)
    first_row, stop_row = 4, table.num_rows - 6
    gradients = torch.full((2, heads, 16, width), torch.nan, device=DEVICE)
    fold_kernel[(16, heads, 2)](
        partial, ends, *gradients, table.row_spans, first_row=first_row, stop_row=stop_row, num_rows=table.num_rows,
        num_slots=16, num_heads=heads, num_query_tiles=tiles[0], num_key_tiles=tiles[1], left_slot=table.left_slot,
        right_slot=table.right_slot, first_head=0, HEAD_WIDTH=width, BLOCK_H=16, BLOCK_U=16, SPLITS=splits,
        HAS_C2P=True, HAS_P2C=True, HAS_FAR=True,
    )  # fmt: skip
    rows = slice(first_row, stop_row)
    for side, own in enumerate(ends.split(tiles)):
        expected = torch.zeros(heads, 16, width, device=DEVICE)
        expected.index_add_(1, table.slots[rows].long(), partial[side].sum(0)[:, rows])
        expected[:, table.left_slot] += own[:, :, 0].sum(0)
        expected[:, table.right_slot] += own[:, :, 1].sum(0)
        assert torch.equal(gradients[side], expected)


@pytest.mark.parametrize(("num_queries", "num_keys"), [(50, 50), (64, 64), (20, 70), (100, 33)])
@pytest.mark.parametrize(("buckets", "longest"), [(8, 16), (7, 20), (-1, 24), (256, 512)])
def test_every_row_that_a_call_can_reach_is_expanded(
    buckets: int, longest: int, num_queries: int, num_keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far tiles read both ends of the table, tiles near the diagonal all distances that tiles have."""
    choose, block = tile_sizes.config, 16
    monkeypatch.setattr(tile_sizes, "config", lambda *arguments: replace(choose(*arguments), block=block))
    query, key = (torch.zeros(1, tokens, 1, 16, device=DEVICE) for tokens in (num_queries, num_keys))
    positions = Positions(buckets, longest)
    table = torch.ones(1, 2 * positions.att_span, 16, device=DEVICE)
    call = attention_call.Call(query, key, key, table, table, attention_call.Problem(positions, 0.25), "forward")
    assert call.table is not None
    needed = torch.zeros(call.table.num_rows, dtype=torch.bool)
    if call.has_far:
        needed[[0, -1]] = True
    tiles_q, tiles_k = (-(-tokens // block) * block for tokens in (num_queries, num_keys))
    needed[max(0, call.table.offset - tiles_q) : call.table.offset + tiles_k] = True
    for expanded in (call.key_table, call.query_table):
        assert not expanded[0, needed].isnan().any()
