"""The reference against the formula in scalar loops, and against transformers' attention module."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention.log_bucket import Positions
from tests.kernels.attention_case import attention_case
from tests.kernels.huggingface_attention import huggingface_attention


def attention_in_loops(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, scale: float
) -> Tensor:
    """The op's formula for tensors [B, T, N, H], with k = 8 and distances to 16, one score at a time."""
    slots = Positions(8, 16).slots(query.shape[1], key.shape[1])
    output = torch.zeros_like(query)
    for b, i, n in torch.cartesian_prod(*(torch.arange(size) for size in query.shape[:3])).tolist():
        scores = []
        for j in range(key.shape[1]):
            slot = int(slots[i - j + key.shape[1] - 1])
            score = query[b, i, n] @ key[b, j, n]
            if rel_key is not None:
                score = score + query[b, i, n] @ rel_key[n, slot]
            if rel_query is not None:
                score = score + key[b, j, n] @ rel_query[n, slot]
            scores.append(math.exp(scale * float(score)))
        for j, score in enumerate(scores):
            output[b, i, n] += score / sum(scores) * value[b, j, n]
    return output


@pytest.mark.parametrize("off", [{}, {"rel_key": None}, {"rel_query": None}, {"rel_key": None, "rel_query": None}])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (9, 9), (3, 25), (25, 4)])
def test_reference_equals_the_formula(num_queries: int, num_keys: int, off: dict[str, None]) -> None:
    case = attention_case(num_queries, num_keys, head_width=4, dtype=torch.float64).with_tensors(**off)
    expected = attention_in_loops(*case.tensors, scale=case.keywords["scale"])
    torch.testing.assert_close(case.run("reference")["output"], expected)


@pytest.mark.parametrize("num_tokens", [1, 7, 63, 111, 600])
@pytest.mark.parametrize("positions", [Positions(32, 512), Positions(7, 40), Positions(-1, 24)])
def test_reference_equals_transformers_on_live_rows(positions: Positions, num_tokens: int) -> None:
    live = torch.ones(2, num_tokens, dtype=torch.bool)
    live[1, num_tokens - num_tokens // 3 :] = False
    case = attention_case(
        num_tokens,
        head_width=8,
        position_buckets=positions.position_buckets,
        max_relative_positions=positions.max_relative_positions,
        dtype=torch.float64,
        key_padding_mask=live,
        scale=1 / float(torch.tensor(3.0 * 8).sqrt()),  # transformers takes it in float32
    )
    live_rows = live[:, :, None, None]
    case = replace(case, grad_output=case.grad_output * live_rows)
    ours = case.run("reference")
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    output = huggingface_attention(*leaves, live, positions)
    torch.testing.assert_close(ours.pop("output") * live_rows, output * live_rows)
    for (name, grad), theirs in zip(ours.items(), torch.autograd.grad(output, leaves, case.grad_output), strict=True):
        torch.testing.assert_close(grad, theirs, msg=lambda text, name=name: f"{name}: {text}")
