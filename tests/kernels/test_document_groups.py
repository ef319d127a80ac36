"""Groups of packed documents: every live token once, little padding, and padding that is neither read nor written."""

import random

import pytest
import torch

from disentangled.kernels.disentangled_attention.document_groups import (
    MAX_PADDING,
    SMALL_GROUP_SCORES,
    DocumentGroup,
    packed_groups,
    padded_groups,
)
from tests.kernels.attention_case import cumulative_lengths

CPU = torch.device("cpu")


def groups_of(lengths_q: list[int], lengths_k: list[int] | None = None) -> tuple[DocumentGroup, ...]:
    starts_q = tuple(cumulative_lengths(*lengths_q).tolist())
    starts_k = tuple(cumulative_lengths(*(lengths_k or lengths_q)).tolist())
    return packed_groups(starts_q, starts_k, CPU)


def random_lengths(seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.choice([0, 1, 5, rng.randint(1, 40), rng.randint(1, 500)]) for _ in range(50)]


@pytest.mark.parametrize("seed", range(3))
def test_every_token_of_a_document_is_in_one_group(seed: int) -> None:
    lengths = random_lengths(seed)
    tokens, documents = [], []
    for group in groups_of(lengths):
        documents += group.documents.tolist()
        live = torch.ones(len(group.documents), group.queries.length, dtype=torch.bool)
        live = live if group.queries.live is None else group.queries.live
        rows = torch.arange(sum(lengths))[group.queries.tokens].view(live.shape)[live].tolist()
        assert group.queries.num_written == len(rows)
        tokens += rows
        for document, row in zip(group.documents.tolist(), live, strict=True):
            assert row.tolist() == [place < lengths[document] for place in range(group.queries.length)]
    assert sorted(tokens) == list(range(sum(lengths)))
    assert sorted(documents) == [document for document, length in enumerate(lengths) if length]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unequal", [False, True])
def test_padding_stays_within_its_bound(seed: int, unequal: bool) -> None:
    lengths_q = random_lengths(seed)
    lengths_k = random_lengths(seed + 100) if unequal else lengths_q
    groups = groups_of(lengths_q, lengths_k)
    assert 1 < len(groups) < 25
    for group in groups:
        live_scores = sum(lengths_q[document] * lengths_k[document] for document in group.documents.tolist())
        padded_scores = len(group.documents) * group.queries.length * group.keys.length
        assert padded_scores - live_scores <= max(MAX_PADDING * live_scores, SMALL_GROUP_SCORES)


def test_documents_of_one_length_are_one_group_without_padding() -> None:
    (group,) = groups_of([40] * 7)
    assert group.queries.live is None and group.keys.live is None
    assert group.dead_key_bias(torch.float32) is None


def test_documents_that_are_neighbours_are_read_and_written_in_place() -> None:
    assert groups_of([3, 100, 100, 100, 2])[0].queries.tokens == slice(3, 303)
    assert [group.queries.tokens for group in groups_of([500])] == [slice(0, 500)]
    (apart,) = groups_of([40, 0, 40])
    assert apart.queries.tokens == slice(0, 80)
    assert isinstance(groups_of([40, 500, 40])[-1].queries.tokens, torch.Tensor)


def test_groups_of_a_batch_are_made_once() -> None:
    assert groups_of([3, 4, 5]) is groups_of([3, 4, 5])


def test_documents_without_queries_or_keys_are_in_no_group() -> None:
    groups = groups_of([3, 0, 4], [0, 5, 4])
    assert [document for group in groups for document in group.documents.tolist()] == [2]


def test_pad_reads_zeros_and_unpad_writes_live_tokens_only() -> None:
    lengths = [2, 5, 4]
    (group,) = groups_of(lengths)
    x = torch.arange(1.0, 12 * 2 * 3 + 1).view(12, 2, 3)  # a token of padding at the end
    padded = group.keys.pad(x, torch.float64)
    assert padded.shape == (2, 3, 5, 3) and padded.dtype == torch.float64
    assert not padded.permute(1, 2, 0, 3)[~group.keys.live].any()
    padded.permute(1, 2, 0, 3)[~group.keys.live] = 1000.0
    back = torch.full_like(x, -1.0)
    group.keys.unpad_into(back, padded)
    assert torch.equal(back[:-1], x[:-1])
    assert torch.equal(back[-1], torch.full((2, 3), -1.0))


def test_padded_batch_is_one_group_and_an_empty_one_none() -> None:
    (group,) = padded_groups(3, 4, 5, None, CPU)
    assert (group.queries.num_documents, group.queries.length, group.keys.length) == (3, 4, 5)
    assert padded_groups(0, 4, 5, None, CPU) == padded_groups(3, 0, 5, None, CPU) == ()
