"""The MLM head against Hugging Face's, and the generator's loss and draws against its logits."""

import pytest
import torch
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2LMPredictionHead

from disentangled.kernels.masked_lm_loss import Draw
from disentangled.kernels.masked_lm_loss.reference import draw_ids
from disentangled.model.generator import Generator, banned_ids
from disentangled.model.mlm_head import MaskedLanguageHead
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


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_head_equals_transformers(activation):
    config = tiny_config(hidden_act=activation)
    ours = scramble(MaskedLanguageHead(config)).double()
    theirs = DebertaV2LMPredictionHead(hf_config(config)).double()
    theirs.load_state_dict(ours.state_dict())
    states, table = torch.randn(5, 32, dtype=torch.float64), torch.nn.Embedding(60, 32).double()
    assert (
        largest_error(ours.logits(states, table.weight), theirs(states, table)) <= 1e-12
    )  # sums of 32 terms of size 1


def test_logits_of_half_precision_come_in_float32():
    head = MaskedLanguageHead(tiny_config()).bfloat16()
    assert head.logits(torch.randn(2, 32).bfloat16(), torch.randn(60, 32).bfloat16()).dtype == torch.float32


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
    keys = layout.sample[rows], layout.token[rows]
    expected_ids = draw_ids(logits.detach(), Draw(3, sampling().stream, *keys, sampling().banned))
    assert torch.equal(output.corrupted_ids[rows], expected_ids)
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


def test_banned_ids_are_specials_and_padding_rows():
    banned = banned_ids(10, num_pieces=7, special_ids=(0, 1, 2, 3, 7), device=torch.device("cpu"))
    assert banned.nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 8, 9]
