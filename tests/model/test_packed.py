"""A packed run gives each document what it gets alone, in a padded row of its own: states, logits, losses, gradients.

Everything random is keyed by sample and token, so that holds with dropout too. In float64, where only the order of sums
differs. The last tests run what a shard's end can leave: padding only, or nothing to predict.
"""

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.layout import TokenLayout, padded_layout
from disentangled.model.noise import discriminator_noise, generator_noise
from tests.model.tiny_models import (
    EXACT,
    MASK_ID,
    alone,
    gradients,
    largest_error,
    packed_run,
    padded_batch,
    sampling,
    scramble,
    text_ids,
    tiny_config,
)

# two documents share row 40, the third stands alone in a row beyond 2^32; four padding tokens follow
LENGTHS, SAMPLES, FIRST_TOKENS, TAIL = (9, 1, 23), (40, 40, (1 << 32) + 5), (0, 9, 0), 4
STARTS = (0, 9, 10)
MASKED = ((2, 3, 7), (0,), (5, 21))  # places in each document

ARCHITECTURES = {
    "v3": {},
    "convolution": {"conv_kernel_size": 3},
    "convolution of five taps": {"conv_kernel_size": 5, "conv_act": "gelu"},
}
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def config(request):
    return tiny_config(**request.param, **DROPOUT)


@pytest.fixture(params=[False, True], ids=["no dropout", "dropout"])
def with_dropout(request):
    return request.param


def packed_batch() -> tuple[Tensor, Tensor, TokenLayout]:
    """Original and corrupted ids [T] with noise in the padding tail, and the layout."""
    layout = packed_run(LENGTHS, TAIL, SAMPLES, FIRST_TOKENS)
    return text_ids(layout.num_tokens, seed=1), text_ids(layout.num_tokens, seed=2), layout


def single_documents() -> Iterable[tuple[slice, TokenLayout, tuple[int, ...]]]:
    for start, length, sample, first, masked in zip(STARTS, LENGTHS, SAMPLES, FIRST_TOKENS, MASKED, strict=True):
        yield slice(start, start + length), alone(length, sample, first), masked


def masked_rows() -> Tensor:
    return torch.tensor([start + place for start, places in zip(STARTS, MASKED, strict=True) for place in places])


def assert_same_gradients(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, gradient in gradients(model).items():
        assert largest_error(gradient, expected[name]) <= EXACT * max(1.0, float(expected[name].abs().max())), name


def test_discriminator_judges_packed_documents_as_alone(config, with_dropout):
    model = scramble(Discriminator(config, "nes")).double()
    noise = discriminator_noise(seed=11, step=4) if with_dropout else None
    original, corrupted, layout = packed_batch()
    states = model.hidden_states(corrupted, layout, noise)
    output = model(corrupted, original, layout, noise)
    output.rtd_loss_sum.backward()
    packed_gradients = gradients(model)
    model.zero_grad()
    loss = 0.0
    for span, single, _ in single_documents():
        for packed_state, state in zip(states, model.hidden_states(corrupted[span], single, noise), strict=True):
            assert largest_error(packed_state[span], state) <= EXACT
        judged = model(corrupted[span], original[span], single, noise)
        judged.rtd_loss_sum.backward()
        loss += judged.rtd_loss_sum.item()
        assert largest_error(output.logits[span], judged.logits) <= EXACT
    assert output.rtd_loss_sum.item() == pytest.approx(loss, rel=EXACT)
    assert_same_gradients(model, packed_gradients)


def test_generator_predicts_packed_documents_as_alone(config, with_dropout):
    model = scramble(Generator(config, MASK_ID)).double()
    noise = generator_noise(seed=11, step=4) if with_dropout else None
    original, _, layout = packed_batch()
    rows = masked_rows()
    masked_ids = original.index_fill(0, rows, MASK_ID)
    logits = model.masked_logits(masked_ids, layout, rows, noise)
    output = model(original, layout, rows, noise, sampling())
    output.mlm_loss_sum.backward()
    packed_gradients = gradients(model)
    model.zero_grad()
    single_logits, drawn = [], []
    for span, single, masked in single_documents():
        places = torch.tensor(masked)
        single_logits.append(model.masked_logits(masked_ids[span], single, places, noise))
        single_output = model(original[span], single, places, noise, sampling())
        single_output.mlm_loss_sum.backward()
        drawn.append(single_output.corrupted_ids)
    assert largest_error(logits, torch.cat(single_logits)) <= EXACT
    assert torch.equal(output.corrupted_ids[: sum(LENGTHS)], torch.cat(drawn))
    assert torch.equal(output.corrupted_ids[sum(LENGTHS) :], original[sum(LENGTHS) :])
    assert_same_gradients(model, packed_gradients)


def test_padded_rows_are_judged_as_alone(config, with_dropout):
    model = scramble(Discriminator(config, "nes")).double()
    noise = discriminator_noise(seed=11, step=4) if with_dropout else None
    lengths, samples = (3, 17, 8), (6, 2, 9)
    ids, mask = padded_batch(lengths)
    states = model.hidden_states(ids.view(-1), padded_layout(mask, torch.tensor(samples)), noise)[-1].view(3, 17, -1)
    for row, (length, sample) in enumerate(zip(lengths, samples, strict=True)):
        state = model.hidden_states(ids[row, :length], alone(length, sample, 0), noise)[-1]
        assert largest_error(states[row, :length], state) <= EXACT


def test_dropout_differs_between_samples_tokens_and_steps():
    config = tiny_config(**DROPOUT)
    model = scramble(Discriminator(config, "nes")).double()
    ids = text_ids(12)

    def last_state(sample: int, first_token: int, step: int) -> Tensor:
        return model.hidden_states(ids, alone(12, sample, first_token), discriminator_noise(11, step))[-1]

    states = [last_state(1, 0, 1), last_state(2, 0, 1), last_state(1, 12, 1), last_state(1, 0, 2)]
    assert torch.equal(last_state(1, 0, 1), states[0])
    for index, state in enumerate(states):
        assert all(largest_error(state, other) > 0.01 for other in states[:index])


@pytest.mark.parametrize("tail_ids", [text_ids(TAIL, seed=5), torch.zeros(TAIL, dtype=torch.int64)])
def test_padding_tail_reaches_nothing(config, tail_ids):
    model = scramble(Discriminator(config, "nes")).double()
    original, corrupted, layout = packed_batch()
    clean = model(corrupted, original, layout, None)
    clean.rtd_loss_sum.backward()
    expected = gradients(model)
    model.zero_grad()
    corrupted[-TAIL:] = original[-TAIL:] = tail_ids
    other = model(corrupted, original, layout, None)
    other.rtd_loss_sum.backward()
    assert torch.equal(other.rtd_loss_sum, clean.rtd_loss_sum)
    assert_same_gradients(model, expected)


def empty_layouts() -> dict[str, TokenLayout]:
    return {"packed": packed_run((), tail=16), "padded": padded_layout(torch.zeros(2, 8))}


def assert_zero_gradients(model: nn.Module) -> None:
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, torch.zeros_like(gradient)), name


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_discriminator_of_padding_alone_has_zero_loss_and_gradients(config, kind, sharing, with_dropout):
    model = scramble(Discriminator(config, sharing))
    ids = torch.zeros(16, dtype=torch.int64)
    shared_rows = None if sharing == "nes" else torch.randn(16, config.hidden_size, requires_grad=sharing == "es")
    noise = discriminator_noise(1, 2) if with_dropout else None
    output = model(ids, ids, empty_layouts()[kind], noise, shared_rows)
    assert output.rtd_loss_sum.item() == 0.0
    output.rtd_loss_sum.backward()
    assert_zero_gradients(model)
    if sharing == "es":
        assert torch.equal(shared_rows.grad, torch.zeros_like(shared_rows))


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_generator_of_padding_alone_has_zero_loss_and_gradients(config, kind, with_dropout):
    model = scramble(Generator(config, MASK_ID))
    ids = torch.zeros(16, dtype=torch.int64)
    noise = generator_noise(1, 2) if with_dropout else None
    nothing = torch.empty(0, dtype=torch.int64)
    output = model(ids, empty_layouts()[kind], nothing, noise, sampling(), needs_shared_rows=True)
    assert (output.mlm_loss_sum.item(), int(output.num_correct), int(output.num_sampled_correct)) == (0.0, 0, 0)
    assert torch.equal(output.corrupted_ids, ids)
    output.mlm_loss_sum.backward()
    assert_zero_gradients(model)


def test_generator_without_masked_tokens_has_zero_loss_and_gradients(config):
    model = scramble(Generator(config, MASK_ID))
    original, _, layout = packed_batch()
    output = model(original, layout, torch.empty(0, dtype=torch.int64), None, sampling())
    assert output.mlm_loss_sum.item() == 0.0
    assert torch.equal(output.corrupted_ids, original)
    output.mlm_loss_sum.backward()
    assert_zero_gradients(model)


def test_document_without_tokens_changes_nothing(config):
    model = scramble(Discriminator(config, "nes")).double()
    ids = text_ids(11)
    plain = model.hidden_states(ids, packed_run((4, 5), 2, (1, 2)))
    with_empty = model.hidden_states(ids, packed_run((0, 4, 0, 5, 0), 2, (8, 1, 8, 2, 8)))
    assert all(largest_error(first, second) <= EXACT for first, second in zip(plain, with_empty, strict=True))
