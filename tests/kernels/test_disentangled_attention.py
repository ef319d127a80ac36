"""Implementation "torch" on padded batches, by the error rule: output and every gradient, sizes that fit no block."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import disentangled_attention, eager, position_terms
from tests.kernels.attention_case import NAMES, attention_case

TERMS = [{}, {"rel_key": None}, {"rel_query": None}, {"rel_key": None, "rel_query": None}]


def mask_with_dead_row(batch: int, num_keys: int) -> Tensor:
    """Live keys scattered at random in all rows but the second, which has none."""
    mask = torch.rand(batch, num_keys, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[:, 0] = True
    mask[1] = False
    return mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_tokens", [1, 7, 63, 64, 111])
def test_torch_is_no_worse_than_eager(num_tokens: int, dtype: torch.dtype) -> None:
    attention_case(num_tokens, dtype=dtype).assert_no_worse_than_eager()


@pytest.mark.parametrize("off", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_position_term_alone_is_no_worse_than_eager(off: dict[str, None], dtype: torch.dtype) -> None:
    attention_case(40, dtype=dtype).with_tensors(**off).assert_no_worse_than_eager()


@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 111), (111, 1), (63, 7), (30, 130)])
def test_unequal_lengths_are_no_worse_than_eager(num_queries: int, num_keys: int) -> None:
    attention_case(num_queries, num_keys).assert_no_worse_than_eager()


@pytest.mark.parametrize("bucket_rule", ["huggingface", "microsoft"])
@pytest.mark.parametrize(("position_buckets", "max_relative_positions"), [(32, 512), (7, 40), (-1, 24), (0, 200)])
def test_every_kind_of_bucket_is_no_worse_than_eager(
    position_buckets: int, max_relative_positions: int, bucket_rule: str
) -> None:
    attention_case(
        150,
        heads=1,
        position_buckets=position_buckets,
        max_relative_positions=max_relative_positions,
        bucket_rule=bucket_rule,
    ).assert_no_worse_than_eager()


def test_rows_beyond_the_longest_distance_are_no_worse_than_eager() -> None:
    attention_case(600, batch=1, heads=1, position_buckets=256, max_relative_positions=512).assert_no_worse_than_eager()


@pytest.mark.parametrize("num_tokens", [5, 63])
def test_padded_keys_are_no_worse_than_eager(num_tokens: int) -> None:
    case = attention_case(num_tokens, batch=3)
    case.with_keywords(key_padding_mask=mask_with_dead_row(3, num_tokens)).assert_no_worse_than_eager()


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_queries_without_a_live_key_give_and_get_zeros(implementation: str) -> None:
    case = attention_case(20, batch=3).with_keywords(key_padding_mask=mask_with_dead_row(3, 20))
    results = case.run(implementation)
    for name in ("output", "grad_query", "grad_key", "grad_value"):
        assert not results[name][1].any(), name
        assert results[name][0].any(), name
    others = torch.tensor([0, 2])
    query, key, value, rel_key, rel_query = case.tensors
    keywords = case.keywords | {"key_padding_mask": case.keywords["key_padding_mask"][others]}
    without = disentangled_attention(
        query[others], key[others], value[others], rel_key, rel_query, implementation=implementation, **keywords
    )
    torch.testing.assert_close(results["output"][others], without)


@pytest.mark.parametrize("poison", [1e30, torch.inf, torch.nan])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_what_padded_keys_hold_has_no_effect(implementation: str, poison: float) -> None:
    mask = mask_with_dead_row(3, 33)
    case = attention_case(20, 33, batch=3, key_padding_mask=mask)
    clean = case.run(implementation)
    key, value = (x.masked_fill(~mask[:, :, None, None], poison) for x in case.tensors[1:3])
    poisoned = case.with_tensors(key=key, value=value).run(implementation)
    for name, result in clean.items():
        assert torch.equal(poisoned[name], result), name
    for name in ("grad_key", "grad_value"):
        assert not poisoned[name][~mask].any(), name


def test_a_mask_of_live_keys_changes_nothing() -> None:
    case = attention_case(30)
    masked = case.with_keywords(key_padding_mask=torch.ones(2, 30, dtype=torch.bool)).run("torch")
    for name, result in case.run("torch").items():
        assert torch.equal(masked[name], result), name


def test_strided_tensors_give_what_contiguous_ones_give() -> None:
    case = attention_case(21)
    strided = {}
    for name, x in zip(("query", "key", "value", "rel_key", "rel_query"), case.tensors, strict=True):
        wide = torch.full((*x.shape[:-1], 3 * x.shape[-1]), torch.nan).transpose(0, 1).contiguous().transpose(0, 1)
        strided[name] = wide[..., 1::3].copy_(x)
        assert not strided[name].is_contiguous()
    results = case.with_tensors(**strided).run("torch")
    assert results["output"].is_contiguous()
    for name, result in case.run("torch").items():
        assert torch.equal(results[name], result), name


def test_gradient_of_a_broadcast_output_is_accepted() -> None:
    case = attention_case(9)
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    disentangled_attention(*leaves, **case.keywords).sum().backward()  # sum's gradient is one number, expanded
    ones = [x.clone().requires_grad_() for x in case.tensors]
    torch.autograd.backward(disentangled_attention(*ones, **case.keywords), torch.ones_like(case.grad_output))
    for leaf, expected in zip(leaves, ones, strict=True):
        assert torch.equal(leaf.grad, expected.grad)


@pytest.mark.parametrize("heads", [1, 3])
def test_blocks_and_chunks_do_not_change_the_answer(heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = mask_with_dead_row(2, 29)
    case = attention_case(23, 29, heads=heads, dtype=torch.float64, key_padding_mask=mask)
    whole = case.run("torch")
    monkeypatch.setattr(position_terms, "BLOCK_ROWS", 5)
    monkeypatch.setattr(eager, "CHUNK_SCORES_CPU", 2 * 2 * 23 * 29)  # two heads at a time
    monkeypatch.setattr(eager, "LARGE_MATRIX", 1)
    for name, result in case.run("torch").items():
        torch.testing.assert_close(result, whole[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("num_threads", [1, 2])
def test_gradients_are_deterministic(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    case = attention_case(130, batch=4, heads=4)
    first = case.run("torch")
    for name, result in case.run("torch").items():
        assert torch.equal(result, first[name]), name


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_large_half_precision_values_do_not_overflow(implementation: str) -> None:
    case = attention_case(9, head_width=64, dtype=torch.float16)
    large = {"query": torch.full_like(case.tensors[0], 120.0), "key": torch.full_like(case.tensors[1], 60.0)}
    assert torch.finfo(torch.float16).max < 120 * 60 * 64
    for name, result in case.with_tensors(**large).run(implementation).items():
        assert result.isfinite().all(), name


@pytest.mark.parametrize("implementation", ["reference", "torch", None])
def test_autocast_casts_the_tensors_and_nothing_else(implementation: str | None) -> None:
    """As scaled_dot_product_attention does: tensors go to autocast's dtype, so that the layers of a model agree on one
    and the fused kernels run in it; float64 stays. What is computed then is what those tensors give without autocast.
    """
    case = attention_case(40, head_width=64)
    half, double = (
        case.with_tensors(
            **{name.removeprefix("grad_"): x.to(dtype) for name, x in zip(NAMES[1:], case.tensors, strict=True)}
        )
        for dtype in (torch.bfloat16, torch.float64)
    )
    expected, expected_double = half.run(implementation), double.run(implementation)
    with torch.autocast("cpu", torch.bfloat16):
        results, results_double = case.run(implementation), double.run(implementation)
    assert results["output"].dtype == torch.bfloat16
    for name, result in results.items():
        assert torch.equal(result, expected[name].to(result.dtype)), name
        assert torch.equal(results_double[name], expected_double[name]), name


def test_nothing_is_kept_when_no_gradient_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    case, forward, kept = attention_case(16), eager._forward, []

    def recorded(*arguments: Any, **keywords: Any) -> tuple[Tensor, list[Tensor | None]]:
        context, for_backward = forward(*arguments, **keywords)
        kept.append(len(for_backward))
        return context, for_backward

    monkeypatch.setattr(eager, "_forward", recorded)
    with_gradients = case.run("torch")["output"]
    output = disentangled_attention(*case.tensors, **case.keywords)
    assert kept == [2, 0]  # probabilities, and the place of dropout's decisions
    assert torch.equal(output, with_gradients)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0)])
def test_empty_batches_give_empty_outputs(shape: tuple[int, int]) -> None:
    results = attention_case(shape[1], batch=shape[0]).run("torch")
    assert results["output"].shape[:2] == shape
    assert not results["grad_rel_key"].any()


def test_queries_of_a_batch_without_keys_get_zeros() -> None:
    assert not attention_case(4, 0).run("torch")["output"].any()


@pytest.mark.requires_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_on_a_gpu_is_no_worse_than_eager(dtype: torch.dtype) -> None:
    case = attention_case(200, batch=3, dtype=dtype)
    on_gpu = replace(case, tensors=tuple(x.cuda() for x in case.tensors), grad_output=case.grad_output.cuda())
    on_gpu.assert_no_worse_than_eager()
