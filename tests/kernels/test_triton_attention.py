"""Implementation "triton", by the error rule: output and every gradient, of sizes that fit no tile, in every variant.

Without a GPU the programs run in Triton's interpreter (tests/conftest.py), in tiles of 16 so that a few dozen tokens
make many tiles, near the diagonal and far; bfloat16 is left to the GPU (test_triton_attention_gpu.py), as the
interpreter multiplies it wrongly. torch.empty is NaN here (conftest.py), so that what is read before it is written
shows, and no program may read or write outside of its tensors (memory_guard.py).
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention
from disentangled.kernels.disentangled_attention.dropout import attention_keep_mask
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from tests.kernels.attention_case import NAMES, AttentionCase, attention_case, cumulative_lengths

pytest.importorskip("triton")
from disentangled.kernels.disentangled_attention import launch, tile_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16
slow = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiles_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    choose = tile_sizes.config
    monkeypatch.setattr(tile_sizes, "config", lambda *arguments: replace(choose(*arguments), block=16))


def case_of(num_queries: int, num_keys: int | None = None, **keywords: object) -> AttentionCase:
    """Of one head and one row, unless said otherwise: the interpreter takes a tenth of a second for a tile."""
    return attention_case(num_queries, num_keys, **{"heads": 1, "batch": 1} | keywords)


def packed(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...], padding: int = 0, **keywords: object
) -> AttentionCase:
    return case_of(
        sum(lengths_q) + padding,
        sum(lengths_k) + padding,
        batch=None,
        cu_seqlens_q=cumulative_lengths(*lengths_q),
        cu_seqlens_k=cumulative_lengths(*lengths_k),
        **keywords,
    )


def scattered_mask(batch: int, num_keys: int) -> Tensor:
    """Row 0: live keys at random in its first half; row 1: none; others: live keys at random everywhere."""
    mask = torch.rand(batch, num_keys, generator=torch.Generator().manual_seed(1)) > 0.3
    mask[:, 0] = True
    mask[0, num_keys // 2 :] = False
    mask[1] = False
    return mask


def dropout_of(*samples: int, first_token: int = 0, probability: float = 0.2) -> AttentionDropout:
    sample, first = torch.tensor(samples), torch.tensor([first_token] * len(samples))
    return AttentionDropout(probability, (1 << 63) + 12345, 4, 3, sample, first)


def assert_equal_results(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert results.keys() == expected.keys()
    for name, result in results.items():
        assert torch.equal(result, expected[name]), name


DOCUMENTS = (5, 0, 33, 1, 16)
OTHER_KEYS = (9, 4, 20, 18, 0)
CASES = {
    "less than a tile": lambda: case_of(7),
    "a tile and one": lambda: case_of(17, heads=2),
    "far tiles": lambda: case_of(50),
    "more queries than keys": lambda: case_of(37, 21),
    "more keys than queries": lambda: case_of(21, 50),
    "keys far from all queries": lambda: case_of(5, 90),
    "queries far from all keys": lambda: case_of(90, 5),
    "float16": lambda: case_of(40, dtype=HALF),
    "c2p": lambda: case_of(36).with_tensors(rel_query=None),
    "p2c": lambda: case_of(36).with_tensors(rel_key=None),
    "no positions": lambda: case_of(36).with_tensors(rel_key=None, rel_query=None),
    "mask": lambda: case_of(37, batch=2, key_padding_mask=scattered_mask(2, 37)),
    "padding after the keys, dropout": lambda: case_of(
        50, batch=2, key_padding_mask=torch.arange(50) < torch.tensor([[50], [35]]), dropout=dropout_of(5, 6)
    ),
    "packed, other keys": lambda: packed(DOCUMENTS, OTHER_KEYS, max_seqlen_q=33, max_seqlen_k=20),
    "dropout": lambda: case_of(20, batch=2, dropout=dropout_of(5, 2**33 + 7, first_token=9)),
    "width 24": lambda: case_of(20, head_width=24),
    "width 64": lambda: case_of(20, head_width=64),
    "odd number of buckets": lambda: case_of(50, position_buckets=7, max_relative_positions=20),
    "no buckets": lambda: case_of(36, position_buckets=-1, max_relative_positions=12),
}
SLOW_CASES = {
    "microsoft": lambda: case_of(60, position_buckets=8, max_relative_positions=20, bucket_rule="microsoft"),
    "width 128": lambda: case_of(20, head_width=128),
    "packed": lambda: packed(DOCUMENTS, DOCUMENTS, padding=3),
    "a tile": lambda: case_of(16),
    "two heads and rows, far": lambda: case_of(70, batch=2, heads=2),
    "far, many keys": lambda: case_of(21, 100, heads=2),
    "float16, far": lambda: case_of(70, batch=2, heads=2, dtype=HALF),
    "float16, mask and dropout": lambda: case_of(
        50, batch=2, dtype=HALF, key_padding_mask=scattered_mask(2, 50), dropout=dropout_of(1, 2)
    ),
    "c2p, far": lambda: case_of(60, heads=2).with_tensors(rel_query=None),
    "p2c, far": lambda: case_of(60, heads=2).with_tensors(rel_key=None),
    "p2c, packed": lambda: packed(DOCUMENTS, OTHER_KEYS).with_tensors(rel_key=None),
    "no positions, packed, dropout": lambda: packed(
        DOCUMENTS, OTHER_KEYS, dropout=dropout_of(*range(5))
    ).with_tensors(rel_key=None, rel_query=None),
    "no positions, mask, float16": lambda: case_of(
        60, batch=3, dtype=HALF, key_padding_mask=scattered_mask(3, 60)
    ).with_tensors(rel_key=None, rel_query=None),
    "packed, mask of far tiles, dropout": lambda: packed(
        (70, 3, 0, 41), (50, 2, 9, 60), heads=2, dropout=dropout_of(3, 3, 4, 4, first_token=2)
    ),
    "mask, far": lambda: case_of(75, batch=3, heads=2, key_padding_mask=scattered_mask(3, 75)),
    "width 8": lambda: case_of(33, head_width=8),
    "width 32": lambda: case_of(50, head_width=32, dtype=HALF),
    "width 40": lambda: case_of(50, head_width=40, dtype=HALF),
    "width 64, far": lambda: case_of(50, head_width=64, dtype=HALF),
    "width 80": lambda: case_of(33, head_width=80),
    "width 128, far": lambda: case_of(50, head_width=128, dtype=HALF),
    "odd buckets, microsoft": lambda: case_of(
        80, position_buckets=7, max_relative_positions=40, bucket_rule="microsoft"
    ),
    "buckets without far tiles": lambda: case_of(80, position_buckets=32, max_relative_positions=512),
    "no buckets, far": lambda: case_of(80, position_buckets=0, max_relative_positions=24),
    "no buckets, microsoft": lambda: case_of(
        80, position_buckets=-1, max_relative_positions=200, bucket_rule="microsoft"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*CASES.values(), *(pytest.param(c, marks=slow) for c in SLOW_CASES.values())],
                         ids=[*CASES, *SLOW_CASES])  # fmt: skip
def test_triton_is_no_worse_than_eager(case: Callable[[], AttentionCase]) -> None:
    case().on(DEVICE).assert_no_worse_than_eager("triton")


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("num_queries", [1, pytest.param(33, marks=slow)])
def test_gradients_of_queries_with_one_key_are_rounding_of_zero(num_queries: int, dtype: torch.dtype) -> None:
    """The softmax of one score is 1 whatever the score, so all gradients but value's are 0. Eager code subtracts equal
    numbers there; the kernels subtract rowsum(O dO) from dO . v, both sums of H products in float32, so the gradient
    of a score is off by at most H eps sum |dO| |v|, here doubled, and the others follow from it.
    """
    case = case_of(num_queries, 1, batch=2, dtype=dtype).on(DEVICE)
    results, exact = case.run("triton"), case.run("reference", torch.float64)
    assert torch.equal(results["output"], case.tensors[2].expand_as(results["output"]))
    torch.testing.assert_close(
        results["grad_value"].double(), exact["grad_value"], rtol=num_queries * torch.finfo(dtype).eps, atol=0.1**3
    )

    q, k, v, c2p, p2c = (x.abs().double().requires_grad_() for x in case.tensors)
    slots = Positions(8, 16).slots(num_queries, 1, DEVICE)
    sizes = torch.einsum("btnh,bsnh->btn", q, k) + torch.einsum("btnh,nth->btn", q, c2p[:, slots])
    sizes = (sizes + torch.einsum("bsnh,nth->btn", k, p2c[:, slots])) * case.keywords["scale"]
    score_error = torch.einsum("btnh,bsnh->btn", case.grad_output.abs().double(), v)
    score_error *= 2 * q.shape[-1] * torch.finfo(torch.float32).eps
    bounds = torch.autograd.grad((sizes * score_error.detach()).sum(), (q, k, c2p, p2c))
    for name, bound in zip(("grad_query", "grad_key", "grad_rel_key", "grad_rel_query"), bounds, strict=True):
        assert not exact[name].any(), name
        rounding = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # of a number that is nearly zero
        assert (results[name].double().abs() <= bound + rounding).all(), name


def test_dropout_decides_as_torch_does_bit_for_bit() -> None:
    num_keys = 61
    dropout = dropout_of(2**33 + 7, 3, first_token=100, probability=0.3)
    query = torch.zeros(2, 37, 2, 64)  # every probability is 1 / 61 ...
    value = torch.eye(num_keys, 64).expand(2, 2, -1, -1).transpose(1, 2)  # ... and stands in a column of its own
    output = disentangled_attention(
        *(x.to(DEVICE) for x in (query, value, value)), None, None, position_buckets=8, max_relative_positions=16,
        scale=1.0, dropout=dropout, implementation="triton",
    )  # fmt: skip
    keep = attention_keep_mask(dropout, torch.arange(2), range(2), 37, num_keys)
    assert torch.equal(output[..., :num_keys].cpu() != 0, keep.permute(1, 2, 0, 3))


def test_queries_without_a_live_key_give_and_get_zeros() -> None:
    results = case_of(9, 18, batch=2, key_padding_mask=scattered_mask(2, 18)).on(DEVICE).run("triton")
    for name in ("output", "grad_query", "grad_key", "grad_value"):
        assert not results[name][1].any(), name
        assert results[name][0].any(), name


@pytest.mark.parametrize("poison", [pytest.param(torch.inf, marks=slow), torch.nan])
def test_what_padded_keys_hold_has_no_effect(poison: float) -> None:
    mask = scattered_mask(2, 20)
    case = case_of(9, 20, batch=2, key_padding_mask=mask)
    key, value = (x.masked_fill(~mask[:, :, None, None], poison) for x in case.tensors[1:3])
    poisoned = case.with_tensors(key=key, value=value).on(DEVICE).run("triton")
    assert_equal_results(poisoned, case.on(DEVICE).run("triton"))
    for name in ("grad_key", "grad_value"):
        assert not poisoned[name].cpu()[~mask].any(), name


def test_tokens_past_the_last_document_are_padding() -> None:
    case = packed((9, 4), (9, 4), padding=6)
    tensors = {name: x.clone() for name, x in zip(("query", "key", "value"), case.tensors, strict=False)}
    for x in tensors.values():
        x[-6:] = torch.nan
    results = case.with_tensors(**tensors).on(DEVICE).run("triton")
    assert_equal_results(results, case.on(DEVICE).run("triton"))
    for name in NAMES[:4]:
        assert not results[name][-6:].any(), name


@pytest.mark.parametrize("lengths", [(), (0, 0)])
def test_rows_without_documents_give_zeros(lengths: tuple[int, ...]) -> None:
    for result in packed(lengths, lengths, padding=5).on(DEVICE).run("triton").values():
        assert not result.any()


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize(("batch", "num_queries", "num_keys"), [(0, 4, 4), (3, 0, 0), (1, 0, 5), (2, 5, 0)])
def test_empty_sides_give_zeros(batch: int, num_queries: int, num_keys: int, has_mask: bool) -> None:
    mask = {"key_padding_mask": torch.ones(batch, num_keys, dtype=torch.bool)} if has_mask else {}
    results = case_of(num_queries, num_keys, batch=batch, **mask).on(DEVICE).run("triton")
    assert results["output"].shape[:2] == (batch, num_queries)
    for name, result in results.items():
        assert not result.any(), name


def test_gradients_are_equal_bit_for_bit_when_repeated() -> None:
    case = case_of(36, dropout=dropout_of(4)).on(DEVICE)
    assert_equal_results(case.run("triton"), case.run("triton"))


def test_heads_in_rounds_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(9, heads=2, dropout=dropout_of(4)).on(DEVICE)
    expected = case.run("triton")
    monkeypatch.setattr(launch, "WORKSPACE_BYTES", 1)
    assert_equal_results(case.run("triton"), expected)


def test_strided_tensors_give_what_contiguous_ones_give() -> None:
    case = case_of(9, batch=2, heads=2, key_padding_mask=scattered_mask(2, 9).flip(0), dropout=dropout_of(3, 9))
    strided = {}
    for name, x in zip(("query", "key", "value", "rel_key", "rel_query"), case.tensors, strict=True):
        wide = torch.full((*x.shape[:-1], 3 * x.shape[-1]), torch.nan).transpose(0, 1).contiguous().transpose(0, 1)
        strided[name] = wide[..., 1::3].copy_(x)
        assert not strided[name].is_contiguous()
    dropout, mask = case.keywords["dropout"], case.keywords["key_padding_mask"]
    every_second = {
        "key_padding_mask": mask.repeat_interleave(2, dim=1)[:, ::2],
        "dropout": replace(dropout, sample=dropout.sample.repeat_interleave(2)[::2]),
    }
    other = case.with_tensors(**strided).with_keywords(**every_second).on(DEVICE)
    assert_equal_results(other.run("triton"), case.on(DEVICE).run("triton"))


def test_strided_cu_seqlens_give_what_contiguous_ones_give() -> None:
    case = packed((9, 2), (4, 5))
    every_second = {name: case.keywords[name].repeat_interleave(2)[::2] for name in ("cu_seqlens_q", "cu_seqlens_k")}
    assert_equal_results(case.with_keywords(**every_second).on(DEVICE).run("triton"), case.on(DEVICE).run("triton"))


def test_gradient_of_a_broadcast_output_is_accepted() -> None:
    case = case_of(9).on(DEVICE)
    leaves, ones = ([x.clone().requires_grad_() for x in case.tensors] for _ in range(2))
    # sum's gradient is one number, expanded
    disentangled_attention(*leaves, implementation="triton", **case.keywords).sum().backward()
    output = disentangled_attention(*ones, implementation="triton", **case.keywords)
    torch.autograd.backward(output, torch.ones_like(case.grad_output))
    for leaf, expected in zip(leaves, ones, strict=True):
        assert torch.equal(leaf.grad, expected.grad)


def test_large_half_precision_values_do_not_overflow() -> None:
    case = case_of(9, head_width=64, dtype=HALF)
    values = zip(("query", "key", "rel_key", "rel_query"), (120.0, 60.0, 60.0, 60.0), strict=True)
    large = {name: torch.full_like(case.tensors[NAMES.index(f"grad_{name}") - 1], value) for name, value in values}
    assert torch.finfo(HALF).max < 60 * 60 * 64
    for name, result in case.with_tensors(**large).on(DEVICE).run("triton").items():
        assert result.isfinite().all(), name
