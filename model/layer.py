"""One transformer layer of DeBERTa: attention, feed-forward, post-LayerNorm.

What: Hugging Face's `DebertaV2Layer` by names and arithmetic. The mask decoder calls the second half on the masked
tokens alone, hence `finish`.
Used by: model/encoder.py, model/mask_decoder.py. Tested by tests/model/test_parity.py.
"""

# T flat tokens  M masked tokens  D hidden width  F feed-forward width

from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.kernels.autocast import cast_input
from disentangled.kernels.residual_norm import residual_norm
from disentangled.model.attention import DisentangledSelfAttention
from disentangled.model.config import DebertaConfig
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise, Site, hidden_dropout_keys


class HiddenStates(NamedTuple):
    """Hidden states [T, D] as the residual stream keeps them, and as products take them.

    Under autocast the second are the first in its dtype, made once and not for each product; else both are one tensor.
    """

    stream: Tensor
    operand: Tensor


def hidden_states(stream: Tensor) -> HiddenStates:
    """Both, of states [T, D] that no residual norm made."""
    return HiddenStates(stream, cast_input(stream))


def activate(states: Tensor, name: str) -> Tensor:
    """The activation `name` (config.ACTIVATIONS); gelu is the exact, erf form."""
    return F.gelu(states) if name == "gelu" else F.relu(states) if name == "relu" else states.tanh()


class ResidualNorm(nn.LayerNorm):
    """LayerNorm(dropout(states) + residual); a module, so that ZeRO-3 gathers its weights when it is called."""

    def forward(self, states: Tensor, residual: Tensor, **dropout: Any) -> HiddenStates:  # type: ignore[override]
        """[..., D] twice -> [..., D], the stream in the wider dtype; dropout: noise.hidden_dropout_keys."""
        return HiddenStates(*residual_norm(states, residual, self.weight, self.bias, self.eps, **dropout))


class ResidualOutput(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual)."""

    def __init__(self, config: DebertaConfig, input_size: int, site: Site) -> None:
        super().__init__()
        self.probability = config.hidden_dropout_prob
        self.site = site
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = ResidualNorm(config.hidden_size, config.layer_norm_eps)

    def forward(
        self,
        states: Tensor,
        residual: Tensor,
        layout: TokenLayout,
        noise: Noise | None,
        layer: int,
        rows: Tensor | None,
    ) -> HiddenStates:
        """[T or M, input_size] and residual [T or M, D] -> [T or M, D]; `rows` [M] names the tokens where only M."""
        keys = hidden_dropout_keys(self.probability, noise, layout, layer, self.site, rows)
        normalized: HiddenStates = self.LayerNorm(self.dense(states), residual, **keys)
        return normalized


class Attention(nn.Module):
    """Self-attention and its residual output, named as in Hugging Face's checkpoints."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.self = DisentangledSelfAttention(config)
        self.output = ResidualOutput(config, config.hidden_size, Site.ATTENTION_OUTPUT)


class Intermediate(nn.Module):
    """act(dense(x)): the feed-forward's first half."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, states: Tensor) -> Tensor:
        """[T, D] -> [T, F]."""
        return activate(self.dense(states), self.act)


class Layer(nn.Module):
    """One encoder layer."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Intermediate(config)
        self.output = ResidualOutput(config, config.intermediate_size, Site.FEED_FORWARD)

    def finish(
        self,
        context: Tensor,
        residual: Tensor,
        layout: TokenLayout,
        noise: Noise | None,
        layer: int,
        rows: Tensor | None = None,
    ) -> HiddenStates:
        """All of the layer after attention: context and residual [T or M, D] -> [T or M, D]."""
        attended = self.attention.output(context, residual, layout, noise, layer, rows)
        return self.output(self.intermediate(attended.operand), attended.stream, layout, noise, layer, rows)

    def forward(
        self, states: HiddenStates, rel_embeddings: Tensor, layout: TokenLayout, noise: Noise | None, layer: int
    ) -> HiddenStates:
        """[T, D] -> [T, D]; `layer` keys the dropout."""
        context = self.attention.self(states.operand, rel_embeddings, layout, noise, layer)
        return self.finish(context, states.stream, layout, noise, layer)
