"""Layouts against values typed by hand."""

import pytest
import torch

from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.model.layout import TokenLayout, packed_layout, padded_layout


def run_of(ends: list[int], num_tokens: int, samples: list[int], first_tokens: list[int]) -> TokenLayout:
    return packed_layout(
        torch.tensor(ends, dtype=torch.int32),
        max_seqlen=4,
        num_tokens=num_tokens,
        document_sample=torch.tensor(samples, dtype=torch.int64),
        document_first_token=torch.tensor(first_tokens, dtype=torch.int64),
    )


def test_packed_layout_counts_from_each_documents_start():
    # row 7 holds documents of 3 and 2 tokens, row 8 one of 1 token; two tokens of padding
    layout = run_of([0, 3, 5, 6], 8, [7, 7, 8], [0, 3, 0])
    assert layout.position.tolist() == [0, 1, 2, 0, 1, 0, 0, 0]
    assert layout.document_start.tolist() == [0, 0, 0, 3, 3, 5, 6, 7]
    assert layout.live.tolist() == [True] * 6 + [False] * 2
    assert layout.sample.tolist()[:6] == [7, 7, 7, 7, 7, 8]
    assert layout.token.tolist()[:6] == [0, 1, 2, 3, 4, 0]
    assert layout.num_tokens == 8


def test_packed_layout_keeps_samples_beyond_32_bits():
    far = (1 << 47) + 3
    assert run_of([0, 2], 2, [far], [0]).sample.tolist() == [far, far]


def test_packed_layout_skips_documents_without_tokens():
    layout = run_of([0, 0, 2, 2, 3], 4, [1, 2, 3, 4], [9, 0, 9, 5])
    assert layout.position.tolist() == [0, 1, 0, 0]
    assert layout.sample.tolist()[:3] == [2, 2, 4]
    assert layout.token.tolist()[:3] == [0, 1, 5]


def test_packed_layout_without_documents_is_all_padding():
    layout = run_of([0], 3, [], [])
    assert not layout.live.any()
    assert layout.document_start.tolist() == [0, 1, 2]
    assert layout.position.tolist() == [0, 0, 0]


def test_padded_layout_counts_from_each_rows_start():
    layout = padded_layout(torch.tensor([[1, 1, 0], [1, 1, 1]]), torch.tensor([5, 9]))
    assert layout.position.tolist() == [0, 1, 2, 0, 1, 2]
    assert layout.document_start.tolist() == [0, 0, 0, 3, 3, 3]
    assert layout.live.tolist() == [True, True, False, True, True, True]
    assert layout.sample.tolist() == [5, 5, 5, 9, 9, 9]
    assert layout.token.tolist() == [0, 1, 2, 0, 1, 2]
    assert layout.document_sample.tolist() == [5, 9]
    assert layout.document_first_token.tolist() == [0, 0]
    assert layout.rows == (2, 3)


def test_padded_layout_numbers_rows_where_no_samples_are_given():
    assert padded_layout(torch.ones(2, 2)).sample.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_layout_gives_the_attention_op_its_own_documents(kind):
    layout = run_of([0, 2, 3], 4, [0, 1], [0, 0]) if kind == "packed" else padded_layout(torch.tensor([[1, 1], [1, 0]]))
    # one head of width 1: equal scores, so each token gets the mean value of its document's live tokens
    zeros = layout.shape_heads(torch.zeros(4, 1), 1)
    values = layout.shape_heads(torch.tensor([[1.0], [3.0], [10.0], [99.0]]), 1)
    context = disentangled_attention(
        zeros,
        zeros,
        values,
        None,
        None,
        position_buckets=0,
        max_relative_positions=4,
        scale=1.0,
        **layout.attention_arguments(),
    )
    assert context.reshape(-1)[:3].tolist() == [2.0, 2.0, 10.0]
