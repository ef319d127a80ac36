"""Masked language modelling: the head tied to E_G, its loss, and the sampling of replacements.

What: dense, activation, LayerNorm, then logits over the vocabulary through E_G and a bias (Hugging Face's
`lm_predictions.lm_head`). Replacements are drawn from the same logits that the loss used, in fp64, by one uniform
number per token from the counter RNG (arXiv 2003.10555 section 3.1; arXiv 2111.09543 equation 3).
Used by: model/generator.py. Tested by tests/model/test_mlm_head.py.
Not here: a loss without the [M, V] logits.
"""

# M masked tokens  D hidden width  V vocabulary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.kernels.counter_rng import Stream, uniform
from disentangled.model.config import DebertaConfig
from disentangled.model.layer import activate

ROWS_AT_ONCE = 256  # bounds the fp64 distribution at 256 x 128k x 8 bytes = 262 MB


class MaskedLanguageHead(nn.Module):
    """Logits over the vocabulary, tied to the generator's embedding table."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """States [M, D] and E_G [V, D] -> logits [M, V], fp32 at least."""
        states = self.LayerNorm(activate(self.dense(states), self.act))
        logits = F.linear(states, word_embeddings, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def sample_replacements(
    logits: Tensor,
    *,
    seed: int,
    stream: Stream,
    sample: Tensor,
    token: Tensor,
    banned: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """Draw one id per masked token from softmax(logits / temperature), special and padding ids excepted.

    Args:
        logits: [M, V]; not differentiated.
        sample, token: [M] int64, what keys each draw: the same token gets the same uniform number on any machine.
        banned: [V] bool, ids that are never drawn.

    Returns:
        [M] int64 ids.
    """
    drawn = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    uniforms = uniform(seed, stream, sample=sample, token=token, element=torch.zeros_like(token)).double()
    for start in range(0, logits.shape[0], ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        # a diverged generator's step is skipped, the discriminator's is not: NaN must still give ids that exist
        finite = logits[rows].detach().nan_to_num()
        scores = (finite.double() / temperature).masked_fill(banned, -torch.inf)
        cumulative = scores.softmax(-1).cumsum(-1)
        target = uniforms[rows, None] * cumulative[:, -1:]
        drawn[rows] = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return drawn
