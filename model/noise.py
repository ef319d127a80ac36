"""Dropout of the model, drawn from the one counter RNG.

What: each dropout decision is a pure function of (seed, stream, global sample index, token, layer, site), never of
rank, worker or micro-batch, so a run gives the same masks on any machine. Relative embeddings belong to no sample:
theirs are keyed by the step.
Used by: embeddings, layer, attention, convolution. Tested by tests/model/test_noise.py.
Not here: the generator itself (kernels/counter_rng.py), masking and sampling (trainer/masking.py, model/generator.py).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.disentangled_attention import AttentionDropout
from disentangled.kernels.hidden_dropout import dropout
from disentangled.model.layout import TokenLayout


class Site(IntEnum):
    """Which of a layer's dropouts: part of the RNG's element word."""

    EMBEDDING = 0
    ATTENTION_OUTPUT = 1
    FEED_FORWARD = 2
    CONVOLUTION = 3
    RELATIVE = 4


@dataclass(frozen=True)
class Noise:
    """The dropout of one forward pass. Passing None instead of a Noise means evaluation: no dropout.

    Attributes:
        seed: the run's seed.
        step: the global step; keys the relative embeddings' dropout, which has no sample.
        stream, attention_stream, relative_stream: the model's own streams of random numbers.
    """

    seed: int
    step: int
    stream: Stream
    attention_stream: Stream
    relative_stream: Stream


def generator_noise(seed: int, step: int) -> Noise:
    """The generator's dropout at a step."""
    return Noise(seed, step, Stream.GENERATOR_DROPOUT, Stream.GENERATOR_ATTENTION_DROPOUT, Stream.GENERATOR_REL_DROPOUT)


def discriminator_noise(seed: int, step: int) -> Noise:
    """The discriminator's dropout at a step."""
    return Noise(
        seed,
        step,
        Stream.DISCRIMINATOR_DROPOUT,
        Stream.DISCRIMINATOR_ATTENTION_DROPOUT,
        Stream.DISCRIMINATOR_REL_DROPOUT,
    )


def drop_hidden(
    states: Tensor,
    probability: float,
    noise: Noise | None,
    layout: TokenLayout,
    layer: int,
    site: Site,
    rows: Tensor | None = None,
) -> Tensor:
    """Dropout on hidden states [T, D], or [M, D] where `rows` [M] names their flat tokens."""
    keys = hidden_dropout_keys(probability, noise, layout, layer, site, rows)
    return dropout(states, **keys) if keys else states


def hidden_dropout_keys(
    probability: float, noise: Noise | None, layout: TokenLayout, layer: int, site: Site, rows: Tensor | None = None
) -> dict[str, Any]:
    """The arguments that decide about a dropout of hidden states; none where there is none."""
    if noise is None or probability == 0.0:
        return {}
    return {
        "probability": probability,
        "seed": noise.seed,
        "stream": noise.stream,
        "layer": layer,
        "site": site,
        "sample": layout.sample if rows is None else layout.sample[rows],
        "token": layout.token if rows is None else layout.token[rows],
    }


def drop_relative(table: Tensor, probability: float, noise: Noise | None, layer: int) -> Tensor:
    """Dropout on the relative embedding table [2k, D], the same for all micro-batches of a step."""
    if noise is None or probability == 0.0:
        return table
    rows = torch.arange(table.shape[0], device=table.device)
    return dropout(
        table,
        probability,
        seed=noise.seed,
        stream=noise.relative_stream,
        layer=layer,
        site=Site.RELATIVE,
        sample=torch.full_like(rows, noise.step),
        token=rows,
    )


def attention_dropout(
    probability: float, noise: Noise | None, layout: TokenLayout, layer: int
) -> AttentionDropout | None:
    """The attention op's dropout argument for one layer."""
    if noise is None or probability == 0.0:
        return None
    return AttentionDropout(
        probability=probability,
        seed=noise.seed,
        stream=noise.attention_stream,
        layer=layer,
        sample=layout.document_sample,
        first_token=layout.document_first_token,
    )
