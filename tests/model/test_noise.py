"""Dropout of the model: no two dropouts of a step share a counter, and each is keyed by what it is for."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from disentangled.kernels import counter_rng
from disentangled.kernels.counter_rng import Stream
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.noise import (
    Site,
    attention_dropout,
    discriminator_noise,
    drop_hidden,
    drop_relative,
    generator_noise,
)
from tests.model.tiny_models import MASK_ID, packed_run, sampling, text_ids, tiny_config


def record_counters(monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """The counters (c0, c1, c2, c3) of each call that draws dropout decisions, as Philox gets them."""
    calls: list[list[tuple[int, ...]]] = []
    rounds: Callable[..., tuple[Tensor, ...]] = counter_rng._philox_rounds

    def recorded(counter: list[Tensor], *arguments: object, **options: object) -> tuple[Tensor, ...]:
        words = [word.tolist() for word in (x.reshape(-1) for x in torch.broadcast_tensors(*counter))]
        calls.append(list(zip(*words, strict=True)))
        return rounds(counter, *arguments, **options)

    monkeypatch.setattr(counter_rng, "_philox_rounds", recorded)
    return calls


@pytest.mark.parametrize("convolution", [0, 3])
def test_no_two_dropouts_of_a_step_share_a_counter(monkeypatch, convolution):
    config = tiny_config(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, conv_kernel_size=convolution)
    generator, discriminator = Generator(config, MASK_ID), Discriminator(config, "nes")
    # equal lengths: the attention op also draws for the padding of shorter documents, whose decisions nobody uses
    layout, ids = packed_run((6, 6, 6), samples=(6, 6, 7), first_tokens=(0, 6, 0)), text_ids(18)
    calls = record_counters(monkeypatch)
    # step 7 beside samples 6 and 7: relative dropout has the step where others have the sample
    generator(ids, layout, torch.tensor([1, 6, 12]), generator_noise(1, 7), sampling(seed=1))
    discriminator(ids, ids, layout, discriminator_noise(1, 7))

    counters = [counter for call in calls for counter in call]
    assert [counter for counter, times in Counter(counters).items() if times > 1] == []
    assert {purpose_of(counter) for counter in counters} == {
        *purposes_of_model(
            GENERATOR_STREAMS, num_layer_passes=2 + 2, convolution=bool(convolution)
        ),  # two by the decoder
        *purposes_of_model(DISCRIMINATOR_STREAMS, num_layer_passes=3, convolution=bool(convolution)),
        (Stream.REPLACEMENT, 0, 0),
    }


GENERATOR_STREAMS = (Stream.GENERATOR_DROPOUT, Stream.GENERATOR_ATTENTION_DROPOUT, Stream.GENERATOR_REL_DROPOUT)
DISCRIMINATOR_STREAMS = (
    Stream.DISCRIMINATOR_DROPOUT,
    Stream.DISCRIMINATOR_ATTENTION_DROPOUT,
    Stream.DISCRIMINATOR_REL_DROPOUT,
)


def purpose_of(counter: tuple[int, ...]) -> tuple[int, int, int]:
    """(stream, layer, site) of a counter; the upper bits of c0 are a head, not a site, for attention."""
    c0, c3 = counter[0], counter[3]
    is_attention = c3 & 0xFF in (Stream.GENERATOR_ATTENTION_DROPOUT, Stream.DISCRIMINATOR_ATTENTION_DROPOUT)
    return c3 & 0xFF, c3 >> 8 & 0xFF, 0 if is_attention else c0 >> 24


def purposes_of_model(
    streams: tuple[Stream, ...], num_layer_passes: int, convolution: bool
) -> set[tuple[int, int, int]]:
    """What a model with so many layer passes should draw."""
    hidden, attention, relative = streams
    layers = range(num_layer_passes)
    return {
        (hidden, 0, Site.EMBEDDING),
        *([(hidden, 0, Site.CONVOLUTION)] if convolution else []),
        *((hidden, layer, site) for layer in layers for site in (Site.ATTENTION_OUTPUT, Site.FEED_FORWARD)),
        *((attention, layer, 0) for layer in layers),
        *((relative, layer, Site.RELATIVE) for layer in layers),
    }


def test_dropout_decision_follows_sample_and_token_not_place():
    states = torch.ones(9, 24)
    noise = generator_noise(seed=5, step=0)
    whole = packed_run((4, 5), samples=(8, 8), first_tokens=(0, 4))
    dropped = drop_hidden(states, 0.5, noise, whole, 1, Site.FEED_FORWARD)
    second = packed_run((5,), samples=(8,), first_tokens=(4,))
    assert torch.equal(drop_hidden(states[4:], 0.5, noise, second, 1, Site.FEED_FORWARD), dropped[4:])
    rows = torch.tensor([7, 0, 3])
    assert torch.equal(drop_hidden(states[rows], 0.5, noise, whole, 1, Site.FEED_FORWARD, rows), dropped[rows])


@pytest.mark.parametrize("change", ["seed", "model", "layer", "site", "sample"], ids=lambda name: f"another {name}")
def test_dropout_decision_changes_with(change):
    states = torch.ones(4, 64)
    noise = discriminator_noise if change == "model" else generator_noise
    first = drop_hidden(states, 0.5, generator_noise(5, 0), packed_run((4,), samples=(8,)), 1, Site.FEED_FORWARD)
    second = drop_hidden(
        states,
        0.5,
        noise(6 if change == "seed" else 5, 0),
        packed_run((4,), samples=(9 if change == "sample" else 8,)),
        2 if change == "layer" else 1,
        Site.ATTENTION_OUTPUT if change == "site" else Site.FEED_FORWARD,
    )
    assert not torch.equal(first, second)


def test_hidden_dropout_does_not_depend_on_the_step():
    # the sample's index already differs from step to step; a step in the key would tie masks to the batch size
    layout, states = packed_run((4,), samples=(8,)), torch.ones(4, 64)
    first, second = (drop_hidden(states, 0.5, generator_noise(5, step), layout, 0, Site.EMBEDDING) for step in (1, 2))
    assert torch.equal(first, second)


def test_relative_dropout_is_keyed_by_step_layer_and_model():
    table = torch.ones(16, 32)
    masks = [
        drop_relative(table, 0.5, noise(5, step), layer)
        for noise, step, layer in product((generator_noise, discriminator_noise), (1, 2), (0, 1))
    ]
    assert torch.equal(drop_relative(table, 0.5, generator_noise(5, 1), 0), masks[0])
    assert all(not torch.equal(mask, other) for index, mask in enumerate(masks) for other in masks[:index])


def test_dropout_drops_its_share_and_keeps_the_mean():
    states = torch.ones(500, 200)
    dropped = drop_hidden(states, 0.1, generator_noise(5, 0), packed_run((500,)), 0, Site.EMBEDDING)
    share = float((dropped == 0).double().mean())
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / states.numel()) ** 0.5  # five standard deviations
    assert dropped.max().item() == pytest.approx(1 / 0.9, rel=1e-4)  # p acts in steps of 1 / 65536


@pytest.mark.parametrize(("probability", "noise"), [(0.0, generator_noise(5, 0)), (0.5, None)])
def test_evaluation_and_zero_probability_drop_nothing(probability, noise):
    layout, states = packed_run((4,)), torch.ones(4, 8)
    assert drop_hidden(states, probability, noise, layout, 0, Site.EMBEDDING) is states
    assert drop_relative(states, probability, noise, 0) is states
    assert attention_dropout(probability, noise, layout, 0) is None
