"""The MLM head against Hugging Face's, its loss against the formula, and its sampling against the softmax."""

import pytest
import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2LMPredictionHead

from disentangled.kernels.counter_rng import Stream
from disentangled.model import mlm_head
from disentangled.model.generator import Generator, banned_ids
from disentangled.model.mlm_head import MaskedLanguageHead, sample_replacements
from tests.model.tiny_models import (
    MASK_ID,
    hf_config,
    largest_error,
    packed_run,
    sampling,
    scramble,
    text_ids,
    tiny_config,
)

NO_BAN = torch.zeros(12, dtype=torch.bool)


def draw(logits: Tensor, banned: Tensor = NO_BAN, first: int = 0, temperature: float = 1.0, seed: int = 9) -> Tensor:
    """Replacements for rows keyed as tokens first, first + 1, ... of 64-token samples."""
    flat = torch.arange(first, first + len(logits))
    return sample_replacements(
        logits,
        seed=seed,
        stream=Stream.REPLACEMENT,
        sample=flat // 64,
        token=flat % 64,
        banned=banned,
        temperature=temperature,
    )


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_head_equals_transformers(activation):
    config = tiny_config(hidden_act=activation)
    ours = scramble(MaskedLanguageHead(config)).double()
    theirs = DebertaV2LMPredictionHead(hf_config(config)).double()
    theirs.load_state_dict(ours.state_dict())
    states, table = torch.randn(5, 32, dtype=torch.float64), torch.nn.Embedding(60, 32).double()
    assert largest_error(ours(states, table.weight), theirs(states, table)) <= 1e-12  # sums of 32 terms of size 1


def test_logits_of_half_precision_come_in_float32():
    head = MaskedLanguageHead(tiny_config()).bfloat16()
    assert head(torch.randn(2, 32).bfloat16(), torch.randn(60, 32).bfloat16()).dtype == torch.float32


def test_generator_loss_and_counts_are_those_of_the_logits():
    model = scramble(Generator(tiny_config(), MASK_ID), spread=0.5).double()
    ids, layout, rows = text_ids(30), packed_run((20, 10)), torch.tensor([1, 5, 6, 22, 29])
    output = model(ids, layout, rows, None, sampling())
    masked_ids = ids.clone()
    masked_ids[rows] = MASK_ID
    logits = model.masked_logits(masked_ids, layout, rows)
    likelihood = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -sum(likelihood[number, ids[row]].log() for number, row in enumerate(rows))
    assert output.mlm_loss_sum.item() == pytest.approx(expected.item(), rel=1e-12)
    assert int(output.num_correct) == int((logits.argmax(-1) == ids[rows]).sum())
    assert int(output.num_sampled_correct) == int((output.corrupted_ids == ids)[rows].sum())
    untouched = torch.ones(30, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(output.corrupted_ids[untouched], ids[untouched])
    assert not output.corrupted_ids.requires_grad


def test_loss_moves_the_tied_table_at_every_id():
    model = scramble(Generator(tiny_config(), MASK_ID))
    ids = torch.full((20,), 7)
    model(ids, packed_run((20,)), torch.tensor([1, 5]), None, sampling()).mlm_loss_sum.backward()
    assert model.word_embeddings.grad.any(dim=1).all()  # as an output each id has a share, though the text holds one


def test_generator_never_sees_the_original_of_a_masked_token():
    model = scramble(Generator(tiny_config(), MASK_ID))
    rows, layout = torch.tensor([1, 5]), packed_run((20,))
    first, second = text_ids(20), text_ids(20).index_fill(0, rows, 7)
    outputs = [model(ids, layout, rows, None, sampling()).corrupted_ids[rows] for ids in (first, second)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_ids_follow_the_softmax(temperature):
    num_draws, logits = 20_000, torch.linspace(-1.8, 1.8, 12).roll(5)
    counts = draw(logits.expand(num_draws, 12), temperature=temperature).bincount(minlength=12)
    expected = num_draws * (logits.double() / temperature).softmax(-1)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert expected.min() > 5  # below, chi-square is no approximation
    assert chi_square < 11 + 5 * (2 * 11) ** 0.5  # its mean and five standard deviations, 11 degrees of freedom


def test_banned_ids_are_never_drawn_and_the_rest_keep_their_odds():
    banned = torch.zeros(12, dtype=torch.bool)
    banned[[0, 3, 4, 11]] = True
    logits = torch.zeros(12)
    logits[banned] = 30.0  # would otherwise take nearly every draw
    logits[7] = 1.0
    counts = draw(logits.expand(8_000, 12), banned).bincount(minlength=12)
    assert not counts[banned].any()
    expected = 8_000 * logits.double().masked_fill(banned, -torch.inf).softmax(-1)[~banned]
    chi_square = float(((counts[~banned] - expected) ** 2 / expected).sum())
    assert chi_square < 7 + 5 * (2 * 7) ** 0.5


def test_drawn_id_depends_on_its_key_alone(monkeypatch):
    logits = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    whole = draw(logits)
    parts = torch.cat([draw(logits[:70]), draw(logits[70:71], first=70), draw(logits[71:], first=71)])
    assert torch.equal(parts, whole)
    monkeypatch.setattr(mlm_head, "ROWS_AT_ONCE", 7)
    assert torch.equal(draw(logits), whole)
    assert not torch.equal(draw(logits, first=1), whole)
    assert not torch.equal(draw(logits, seed=8), whole)


@pytest.mark.parametrize("uniform", [2.0**-53, 0.5, 1.0 - 2.0**-53], ids=["smallest", "half", "largest"])
def test_drawn_ids_stay_in_range_at_the_ends_of_the_uniform(monkeypatch, uniform):
    monkeypatch.setattr(
        mlm_head, "uniform", lambda *_, token, **__: torch.full(token.shape, uniform, dtype=torch.float64)
    )
    banned = torch.zeros(12, dtype=torch.bool)
    banned[[0, 1, 10, 11]] = True
    # odd sizes make cumulative sums that end a little above or below 1
    logits = torch.randn(3_000, 12, generator=torch.Generator().manual_seed(0)) * 8
    drawn = draw(logits, banned)
    assert drawn.min() >= 2
    assert drawn.max() <= 9


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_logits_of_a_diverged_generator_still_give_allowed_ids(poison):
    banned = torch.zeros(12, dtype=torch.bool)
    banned[[0, 1, 11]] = True
    logits = torch.zeros(64, 12)
    logits[:32] = poison
    logits[32:, 5] = poison
    drawn = draw(logits, banned)
    assert not banned[drawn].any()


def test_banned_ids_are_specials_and_padding_rows():
    banned = banned_ids(10, num_pieces=7, special_ids=(0, 1, 2, 3, 7), device=torch.device("cpu"))
    assert banned.nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 8, 9]
