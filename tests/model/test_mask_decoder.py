"""The mask decoder against the same decoder over all tokens, written with Hugging Face's layer document by document."""

import pytest
import torch
from torch import Tensor
from transformers import DebertaV2Model

from disentangled.model import attention as attention_module
from disentangled.model.generator import Generator
from disentangled.model.layer import Layer
from disentangled.model.noise import generator_noise
from tests.model.tiny_models import (
    EXACT,
    MASK_ID,
    gradients,
    hf_config,
    largest_error,
    packed_run,
    sampling,
    scramble,
    text_ids,
    tiny_config,
)

LENGTHS = (9, 1, 23)
MASKED = torch.tensor([2, 7, 9, 10, 31])
WEIGHTS = torch.randn(len(MASKED), 32, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

# transformers takes its scale through float32, and its rounding passes through the last layer twice more
PARITY = 1e-7


def decode(model: Generator, ids: Tensor, layout, masked_rows: Tensor, noise=None) -> Tensor:
    embeddings = model.deberta.embeddings(ids, layout, noise)
    encoder = model.deberta.encoder
    states = encoder(embeddings, layout, noise, num_layers=len(encoder.layer) - 1)[-1]
    return model.mask_decoder(states, encoder.layer[-1], encoder.get_rel_embeddings(), layout, masked_rows, noise)


def decode_plainly(trunk: DebertaV2Model, position_table: Tensor, ids: Tensor) -> Tensor:
    """All tokens [N, D] of one document: h[-2] plus positions queries h[-2] through the last layer, and again."""
    mask = torch.ones(1, len(ids))
    keys = trunk(input_ids=ids.unsqueeze(0), attention_mask=mask, output_hidden_states=True).hidden_states[-2]
    encoder = trunk.encoder
    queries = keys + position_table[: len(ids)]
    for _ in range(2):
        queries = encoder.layer[-1](
            keys,
            encoder.get_attention_mask(mask),
            query_states=queries,
            relative_pos=encoder.get_rel_pos(keys),
            rel_embeddings=encoder.get_rel_embedding(),
        )[0]
    return queries[0]


@pytest.mark.parametrize(
    "changes", [{}, {"share_att_key": False}, {"conv_kernel_size": 3}], ids=["v3", "unshared", "v2"]
)
def test_decoder_equals_the_plain_one_over_all_tokens(changes):
    config = tiny_config(**changes)
    model = scramble(Generator(config, MASK_ID)).double()
    trunk = DebertaV2Model(hf_config(config)).double().eval()
    trunk.load_state_dict(model.deberta.state_dict())
    position_table = model.mask_decoder.position_embeddings.weight.detach().clone().requires_grad_()
    layout, ids = packed_run(LENGTHS, tail=3), text_ids(sum(LENGTHS) + 3)

    got = decode(model, ids, layout, MASKED)
    documents = ids[: sum(LENGTHS)].split(LENGTHS)
    expected = torch.cat([decode_plainly(trunk, position_table, document) for document in documents])[MASKED]
    assert largest_error(got, expected) <= PARITY

    (got * WEIGHTS).sum().backward()
    (expected * WEIGHTS).sum().backward()
    for name, parameter in trunk.named_parameters():
        allowed = PARITY * max(1.0, float(parameter.grad.abs().max()))
        assert largest_error(model.deberta.get_parameter(name).grad, parameter.grad) <= allowed, name
    assert largest_error(model.mask_decoder.position_embeddings.weight.grad, position_table.grad) <= PARITY


@pytest.mark.parametrize("noise", [None, generator_noise(5, 2)], ids=["no dropout", "dropout"])
def test_masked_tokens_decode_alike_with_or_without_the_others(noise):
    config = tiny_config(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2)
    model = scramble(Generator(config, MASK_ID)).double()
    layout, ids = packed_run(LENGTHS), text_ids(sum(LENGTHS))
    everything = decode(model, ids, layout, torch.arange(sum(LENGTHS)), noise)
    assert largest_error(decode(model, ids, layout, MASKED, noise), everything[MASKED]) <= EXACT


def test_positions_restart_in_each_document():
    model = scramble(Generator(tiny_config(), MASK_ID)).double()
    ids = text_ids(7)
    twice = decode(model, ids.repeat(2), packed_run((7, 7)), torch.tensor([3, 10]))
    assert largest_error(twice[0], twice[1]) <= EXACT
    shifted = decode(model, ids, packed_run((7,)), torch.tensor([3, 4]))
    assert largest_error(shifted[0], twice[0]) <= EXACT
    with torch.no_grad():
        model.mask_decoder.position_embeddings.weight[3] = 10.0 * model.mask_decoder.position_embeddings.weight[100]
    moved = decode(model, ids.repeat(2), packed_run((7, 7)), torch.tensor([3, 10, 11]))
    assert largest_error(moved[0], twice[0]) > 0.1
    assert largest_error(moved[:1], moved[1:2]) <= EXACT
    assert largest_error(moved[2], shifted[1]) <= EXACT


def test_last_layers_ordinary_pass_is_not_computed(monkeypatch):
    model = Generator(tiny_config(num_hidden_layers=3), MASK_ID)
    ordinary_passes, attention_calls = [], []
    forward, attend = Layer.forward, attention_module.disentangled_attention
    monkeypatch.setattr(Layer, "forward", lambda self, *a: ordinary_passes.append(self) or forward(self, *a))
    monkeypatch.setattr(
        attention_module, "disentangled_attention", lambda *a, **k: attention_calls.append(a) or attend(*a, **k)
    )
    model(text_ids(10), packed_run((10,)), torch.tensor([3, 4]), None, sampling())
    assert ordinary_passes == list(model.deberta.encoder.layer[:2])
    assert len(attention_calls) == 2 + 2


def test_feed_forward_runs_on_masked_tokens_alone(monkeypatch):
    model = Generator(tiny_config(num_hidden_layers=1), MASK_ID)
    rows = []
    hook = model.deberta.encoder.layer[0].intermediate.register_forward_hook(
        lambda _, inputs, __: rows.append(len(inputs[0]))
    )
    model(text_ids(10), packed_run((10,)), torch.tensor([3, 4]), None, sampling())
    hook.remove()
    assert rows == [2, 2]


def test_every_generator_parameter_gets_a_gradient():
    model = scramble(Generator(tiny_config(conv_kernel_size=3), MASK_ID))
    output = model(text_ids(33), packed_run(LENGTHS), MASKED, None, sampling())
    output.mlm_loss_sum.backward()
    assert all(gradient.any() for gradient in gradients(model).values())


def test_document_longer_than_the_position_table_is_named():
    model = Generator(tiny_config(max_position_embeddings=20), MASK_ID)
    decode(model, text_ids(20), packed_run((20,)), torch.tensor([19]))
    message = r"a document has 21 tokens but model\.max_position_embeddings is 20: .* raise it"
    with pytest.raises(ValueError, match=message):
        decode(model, text_ids(21), packed_run((21,)), torch.tensor([3]))


def test_one_layer_generator_with_convolution_is_refused():
    with pytest.raises(
        ValueError, match=r"model\.generator_num_hidden_layers is 1 with a convolution.*at least 2 layers"
    ):
        Generator(tiny_config(num_hidden_layers=1, conv_kernel_size=3), MASK_ID)
