"""The map from distance to row, against transformers and against Microsoft's rule as it is documented."""

import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

from disentangled.kernels.disentangled_attention.log_bucket import Positions, _slot_table


def huggingface_slots(num_tokens: int, position_buckets: int, max_relative_positions: int) -> torch.Tensor:
    """What DebertaV2's attention gathers with: [T, T]."""
    layer = torch.empty(1, num_tokens, 1)
    buckets = build_relative_position(layer, layer, position_buckets, max_relative_positions)[0]
    span = position_buckets if position_buckets > 0 else max_relative_positions
    return torch.clamp(buckets + span, 0, 2 * span - 1)


def slots_of_pairs(positions: Positions, num_queries: int, num_keys: int) -> torch.Tensor:
    distance = torch.arange(num_queries)[:, None] - torch.arange(num_keys)
    return positions.slots(num_queries, num_keys)[distance + num_keys - 1]


@pytest.mark.parametrize(
    ("position_buckets", "max_relative_positions"),
    [(256, 512), (32, 512), (255, 512), (7, 512), (2, 512), (3, 64), (8, 33), (48, 128), (4, 4), (-1, 512), (0, 64)],
)
@pytest.mark.parametrize("num_tokens", [1, 7, 64, 513, 1100])
def test_slots_equal_those_of_transformers(position_buckets: int, max_relative_positions: int, num_tokens: int) -> None:
    positions = Positions(position_buckets, max_relative_positions)
    expected = huggingface_slots(num_tokens, position_buckets, max_relative_positions)
    assert torch.equal(slots_of_pairs(positions, num_tokens, num_tokens), expected)


def test_slot_of_the_boundary_distance_is_the_last_before_the_clamp() -> None:
    slots = Positions(256, 512).slots(600, 600)
    by_distance = {distance: int(slots[distance + 599]) for distance in (-512, -511, -128, 0, 128, 511, 512)}
    assert by_distance == {-512: 0, -511: 1, -128: 128, 0: 256, 128: 384, 511: 511, 512: 511}


def test_only_1019_distances_are_distinct_at_the_published_sizes() -> None:
    slots = Positions(256, 512).slots(2000, 2000)
    changes = (slots.diff() != 0).nonzero().flatten() - 1999
    assert (int(changes[0]), int(changes[-1])) == (-512, 505)  # constant up to -512 and from 506 on
    assert slots.unique().numel() == 512


@pytest.mark.parametrize("position_buckets", [256, 32, 255, 7])
def test_microsoft_rule_clamps_the_distance_first(position_buckets: int) -> None:
    num_tokens, last = 1300, 511
    clamped = slots_of_pairs(Positions(position_buckets, 512), last + 1, last + 1)
    distance = (torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)).clamp(-last, last)
    expected = clamped[distance.clamp(min=0), (-distance).clamp(min=0)]
    assert torch.equal(slots_of_pairs(Positions(position_buckets, 512, "microsoft"), num_tokens, num_tokens), expected)


def test_rules_differ_only_below_minus_511_at_the_published_sizes() -> None:
    huggingface, microsoft = (Positions(256, 512, rule).slots(1500, 1500) for rule in ("huggingface", "microsoft"))
    differing = (huggingface != microsoft).nonzero().flatten() - 1499
    assert differing.tolist() == list(range(-1499, -511))
    assert set(huggingface[:988].tolist()) == {0}
    assert set(microsoft[:988].tolist()) == {1}


def test_rules_agree_without_buckets() -> None:
    assert torch.equal(Positions(-1, 16).slots(50, 50), Positions(-1, 16, "microsoft").slots(50, 50))


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 9), (9, 1), (3, 700), (513, 64)])
def test_slots_of_unequal_lengths_are_a_corner_of_the_square(num_queries: int, num_keys: int) -> None:
    positions, longest = Positions(32, 64), max(num_queries, num_keys)
    square = slots_of_pairs(positions, longest, longest)
    assert torch.equal(slots_of_pairs(positions, num_queries, num_keys), square[:num_queries, :num_keys])
    assert positions.slots(num_queries, num_keys).shape == (num_queries + num_keys - 1,)


def test_slots_first_asked_for_in_evaluation_serve_training() -> None:
    _slot_table.cache_clear()
    with torch.inference_mode():
        slots = Positions(8, 16).slots(5, 5)
    weights = torch.ones(16, requires_grad=True)
    weights.gather(0, slots).sum().backward()  # autograd saves the slots
    assert weights.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 512), "position_buckets 1 with max_relative_positions 512"),
        ((256, 129), "position_buckets 256 with max_relative_positions 129"),
        ((-1, 0), "max_relative_positions is 0"),
        ((256, 512, "google"), "bucket_rule 'google' is unknown: give one of huggingface, microsoft"),
    ],
)
def test_impossible_positions_are_refused_in_one_line(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Positions(*arguments)
    assert "\n" not in str(error.value)
