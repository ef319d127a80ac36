"""Dropout of attention probabilities: the same decisions from both implementations, at the right rate, of any batch."""

from dataclasses import replace

import pytest
import torch

from disentangled.kernels import counter_rng
from disentangled.kernels.counter_rng import Stream, random_words
from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention, eager
from disentangled.kernels.disentangled_attention.dropout import attention_keep_mask
from disentangled.kernels.disentangled_attention.reference import keep_decisions
from tests.kernels.attention_case import attention_case


def attention_dropout(batch: int, probability: float = 0.1, **changes: object) -> AttentionDropout:
    """Rows of samples 2^33, 2^33 + 1 ..., each document at the start of its row."""
    sample, first_token = torch.arange(batch) + 2**33, torch.zeros(batch, dtype=torch.int32)
    dropout = AttentionDropout(probability, 7, Stream.GENERATOR_ATTENTION_DROPOUT, 3, sample, first_token)
    return replace(dropout, **changes)


@pytest.mark.parametrize(("head", "query", "key"), [(0, 0, 0), (11, 3, 7), (2, 0, 8), (5, 6, 110), (0, 4, 61)])
def test_decision_is_the_one_that_the_counter_names(head: int, query: int, key: int) -> None:
    words = random_words(7, 4, layer=3, sample=2**33 + 1, token=100 + query, element=head * 2**20 + key // 8)
    number = int(words[key % 8 // 2]) >> (16 if key % 2 else 0) & 0xFFFF
    probability = (number + 1) / 65536  # the smallest that drops this one
    for threshold, kept in ((probability, False), (probability - 1 / 65536, True)):
        dropout = attention_dropout(2, threshold, first_token=torch.tensor([0, 100]))
        assert attention_keep_mask(dropout, torch.tensor([1]), range(12), 7, 111)[head, 0, query, key] == kept


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(("num_queries", "num_keys"), [(1, 1), (7, 63), (20, 16), (5, 111)])
def test_decisions_equal_those_of_the_reference(num_queries: int, num_keys: int, probability: float) -> None:
    dropout = attention_dropout(3, probability, first_token=torch.tensor([0, 100, 3]))
    keep = attention_keep_mask(dropout, torch.tensor([2, 0, 1]), range(1, 4), num_queries, num_keys)
    assert keep.shape == (3, 3, num_queries, num_keys)
    for place, document in enumerate([2, 0, 1]):
        expected = keep_decisions(dropout, document, 4, num_queries, num_keys)[1:]
        assert torch.equal(keep[:, place], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.1, 0.75])
def test_dropout_is_no_worse_than_eager(probability: float, dtype: torch.dtype) -> None:
    mask = torch.ones(3, 63, dtype=torch.bool)
    mask[0, 40:] = False
    attention_case(
        63, batch=3, dtype=dtype, key_padding_mask=mask, dropout=attention_dropout(3, probability)
    ).assert_no_worse_than_eager()


def test_dropout_a_few_heads_at_a_time_is_no_worse_than_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "CHUNK_SCORES_CPU", 2 * 2 * 20 * 20)
    attention_case(20, heads=5, dropout=attention_dropout(2, 0.5)).assert_no_worse_than_eager()


@pytest.mark.parametrize("probability", [0.1, 1 / 3])
def test_dropout_drops_at_its_rate_everywhere(probability: float) -> None:
    keep = attention_keep_mask(attention_dropout(16, probability), torch.arange(16), range(6), 64, 80)
    rate = round(probability * 65536) / 65536
    spread = (rate * (1 - rate) / keep.numel()) ** 0.5
    assert abs(float((~keep).double().mean()) - rate) < 5 * spread
    for axis in range(4):
        rates = (~keep).double().mean(dim=tuple(set(range(4)) - {axis}))
        assert float((rates - rate).abs().max()) < 6 * spread * keep.shape[axis] ** 0.5


def test_dropout_leaves_the_expectation_unchanged() -> None:
    case = attention_case(12, batch=1, heads=1, dtype=torch.float64)
    query, key, value, *tables = case.tensors
    repeats = 4000
    many = disentangled_attention(
        *(x.expand(repeats, *x.shape[1:]) for x in (query, key, value)),
        *tables,
        dropout=attention_dropout(repeats, 0.5),
        **case.keywords,
    )
    spread = many.std(dim=0) / repeats**0.5
    assert float(((many.mean(dim=0) - case.run("torch")["output"][0]) / spread).abs().max()) < 5


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_probability_zero_is_no_dropout(implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention_case(9)
    dropped = case.with_keywords(dropout=attention_dropout(2, 0.0))
    expected = case.run(implementation)["output"]
    monkeypatch.delattr(counter_rng, "_philox_rounds")  # nothing is drawn
    assert torch.equal(dropped.run(implementation)["output"], expected)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"stream": Stream.DISCRIMINATOR_ATTENTION_DROPOUT},
        {"layer": 4},
        {"sample": torch.arange(4) + 2**33 + 4},
        {"sample": torch.arange(4)},
        {"first_token": torch.full((4,), 64)},
    ],
)
def test_decisions_differ_with_everything_that_names_them(change: dict[str, object]) -> None:
    keep, changed = (
        attention_keep_mask(dropout, torch.arange(4), range(2), 32, 32)
        for dropout in (attention_dropout(4, 0.5), attention_dropout(4, 0.5, **change))
    )
    agreement = (keep == changed).double().mean()
    assert abs(float(agreement) - 0.5) < 5 * 0.5 / keep.numel() ** 0.5


def test_heads_and_rows_have_decisions_of_their_own() -> None:
    keep = attention_keep_mask(attention_dropout(2, 0.5), torch.arange(2), range(3), 16, 24).double()
    rows = keep.flatten(0, 2)
    agreement = (rows @ rows.T + (1 - rows) @ (1 - rows).T) / rows.shape[1]
    assert float((agreement - torch.eye(len(rows))).max()) < 1


def test_decisions_do_not_depend_on_padding_or_batch() -> None:
    dropout = attention_dropout(4)
    keep = attention_keep_mask(dropout, torch.arange(4), range(3), 30, 41)
    moved = replace(dropout, sample=dropout.sample[[3, 1]], first_token=dropout.first_token[[3, 1]])
    assert torch.equal(attention_keep_mask(moved, torch.arange(2), range(3), 17, 23), keep[:, [3, 1], :17, :23])


def test_a_step_back_makes_the_same_decisions() -> None:
    case = attention_case(30, dropout=attention_dropout(2, 0.5))
    first = case.run("torch")
    for name, result in case.run("torch").items():
        assert torch.equal(result, first[name]), name
