"""Gradients of both implementations against finite differences, in float64."""

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention, eager, position_terms
from tests.kernels.attention_case import AttentionCase, attention_case, cumulative_lengths

MASK = torch.tensor([[True, False, True, True, True], [False] * 5, [True, True, False, False, True]])
DROPOUT = AttentionDropout(0.4, 1, 4, 0, torch.tensor([3, 4, 5]), torch.tensor([0, 2, 5]))
SMALL = {"heads": 2, "head_width": 3, "position_buckets": 4, "max_relative_positions": 6, "dtype": torch.float64}
CASES = {
    "padded": attention_case(5, **SMALL),
    "unequal": attention_case(2, 7, **SMALL),
    "one token": attention_case(1, **SMALL),
    "mask": attention_case(3, 5, batch=3, key_padding_mask=MASK, **SMALL),
    "mask and dropout": attention_case(3, 5, batch=3, key_padding_mask=MASK, dropout=DROPOUT, **SMALL),
    "packed": attention_case(
        8, batch=None, cu_seqlens_q=cumulative_lengths(2, 4, 1), cu_seqlens_k=cumulative_lengths(1, 4, 3), **SMALL
    ),
    "packed and dropout": attention_case(
        8,
        batch=None,
        cu_seqlens_q=cumulative_lengths(2, 3, 3),
        cu_seqlens_k=cumulative_lengths(2, 3, 3),
        dropout=DROPOUT,
        **SMALL,
    ),
    "c2p": attention_case(5, **SMALL).with_tensors(rel_query=None),
    "p2c": attention_case(5, **SMALL).with_tensors(rel_key=None),
    "no buckets": attention_case(5, **(SMALL | {"position_buckets": -1})),
}


def passes_gradcheck(case: AttentionCase, implementation: str) -> bool:
    present = [index for index, x in enumerate(case.tensors) if x is not None]

    def attend(*leaves: Tensor) -> Tensor:
        tensors = list(case.tensors)
        for index, leaf in zip(present, leaves, strict=True):
            tensors[index] = leaf
        return disentangled_attention(*tensors, implementation=implementation, **case.keywords)

    leaves = [case.tensors[index].detach().clone().requires_grad_() for index in present]
    return torch.autograd.gradcheck(attend, leaves)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_gradients_match_finite_differences(implementation: str, name: str) -> None:
    assert passes_gradcheck(CASES[name], implementation)


def test_gradients_match_finite_differences_across_blocks_and_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(position_terms, "BLOCK_ROWS", 2)
    monkeypatch.setattr(eager, "CHUNK_SCORES_CPU", 1)  # one head at a time
    assert passes_gradcheck(CASES["mask and dropout"], "torch")
    assert passes_gradcheck(CASES["packed"], "torch")


def test_second_derivatives_are_refused() -> None:
    query, *others = (x.clone().requires_grad_() for x in CASES["padded"].tensors)
    output = disentangled_attention(query, *others, **CASES["padded"].keywords)
    (grad,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()
