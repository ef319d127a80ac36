"""Packed documents (cu_seqlens): each is attended as if it were alone, however "torch" groups them."""

import pytest
import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import AttentionDropout, document_groups
from tests.kernels.attention_case import AttentionCase, attention_case, cumulative_lengths

LENGTHS = [(1,), (63,), (7, 1, 63, 7), (5, 0, 9, 111, 110, 2), (33,) * 4]


def packed_case(
    lengths_q: tuple[int, ...], lengths_k: tuple[int, ...] | None = None, *, padding: int = 0, dtype=torch.float32
) -> AttentionCase:
    """Documents of these lengths in a row that ends in `padding` tokens."""
    lengths_k = lengths_q if lengths_k is None else lengths_k
    return attention_case(
        sum(lengths_q) + padding,
        sum(lengths_k) + padding,
        batch=None,
        dtype=dtype,
        cu_seqlens_q=cumulative_lengths(*lengths_q),
        cu_seqlens_k=cumulative_lengths(*lengths_k),
    )


def one_document(case: AttentionCase, document: int) -> AttentionCase:
    """That document as a padded batch of one."""
    keywords = dict(case.keywords)
    tokens_q, tokens_k = (
        slice(*starts[document : document + 2].tolist())
        for starts in (keywords.pop("cu_seqlens_q"), keywords.pop("cu_seqlens_k"))
    )
    query, key, value, rel_key, rel_query = case.tensors
    return AttentionCase(
        (query[None, tokens_q], key[None, tokens_k], value[None, tokens_k], rel_key, rel_query),
        case.grad_output[None, tokens_q],
        keywords,
    )


def document_results(case: AttentionCase, implementation: str) -> dict[str, Tensor]:
    """What the documents give one by one, put together as the packed call gives it."""
    num_documents = len(case.keywords["cu_seqlens_q"]) - 1
    results = [one_document(case, document).run(implementation) for document in range(num_documents)]
    return {
        name: sum(result[name] for result in results) if "rel" in name else torch.cat([r[name][0] for r in results])
        for name in results[0]
    }


@pytest.mark.parametrize("implementation", ["reference", "torch"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_documents_equal_each_alone(lengths: tuple[int, ...], implementation: str) -> None:
    case = packed_case(lengths, dtype=torch.float64)
    packed = case.run(implementation)
    for name, expected in document_results(case, implementation).items():
        torch.testing.assert_close(packed[name], expected, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_packed_documents_are_no_worse_than_eager(lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    packed_case(lengths, padding=3, dtype=dtype).assert_no_worse_than_eager()


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_queries_and_keys_of_a_document_may_differ_in_number(implementation: str) -> None:
    case = packed_case((3, 40, 0, 5, 7), (50, 2, 9, 5, 0), dtype=torch.float64)
    packed = case.run(implementation)
    for name, expected in document_results(case, implementation).items():
        torch.testing.assert_close(packed[name], expected, msg=lambda text, name=name: f"{name}: {text}")
    assert not packed["output"][-7:].any()  # no keys


@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_tokens_past_the_last_document_are_padding(implementation: str, poison: float) -> None:
    case = packed_case((9, 30, 4), padding=6)
    clean = case.run(implementation)
    tensors = {name: x.clone() for name, x in zip(("query", "key", "value"), case.tensors, strict=False)}
    for x in tensors.values():
        x[-6:] = poison
    poisoned = case.with_tensors(**tensors).run(implementation)
    for name, result in poisoned.items():
        assert torch.equal(result, clean[name]), name
        assert "rel" in name or not result[-6:].any(), name


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_rows_without_documents_give_zeros(implementation: str) -> None:
    for lengths in ((), (0, 0)):
        results = packed_case(lengths, padding=5).run(implementation)
        for name, result in results.items():
            assert not result.any(), name


@pytest.mark.parametrize(("max_padding", "small"), [(0.0, 0), (0.25, 0), (1e9, 0), (0.25, 10**6)])
def test_grouping_does_not_change_the_answer(max_padding: float, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_groups, "MAX_PADDING", max_padding)
    monkeypatch.setattr(document_groups, "SMALL_GROUP_SCORES", small)
    document_groups.packed_groups.cache_clear()
    packed_case((3, 17, 64, 60, 5, 5, 1)).assert_no_worse_than_eager()
    document_groups.packed_groups.cache_clear()


def test_longest_document_may_be_named_with_room() -> None:
    case = packed_case((3, 8))
    expected = case.run("torch")["output"]
    assert torch.equal(case.with_keywords(max_seqlen_q=8, max_seqlen_k=100).run("torch")["output"], expected)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_document_drops_the_same_packed_and_alone(implementation: str) -> None:
    lengths = (9, 30, 4, 30)
    case = packed_case(lengths, dtype=torch.float64)
    place = {"probability": 0.3, "seed": 5, "stream": 4, "layer": 2}
    sample, first_token = torch.tensor([70, 70, 71, 71]), torch.tensor([0, 9, 0, 4], dtype=torch.int32)
    packed = case.with_keywords(dropout=AttentionDropout(**place, sample=sample, first_token=first_token))
    results = packed.run(implementation)["output"].split(lengths)
    for document, result in enumerate(results):
        alone = one_document(case, document).with_keywords(
            dropout=AttentionDropout(**place, sample=sample[document, None], first_token=first_token[document, None])
        )
        torch.testing.assert_close(result, alone.run(implementation)["output"][0])
