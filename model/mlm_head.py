"""Masked language modelling: the head tied to E_G.

What: dense, activation, LayerNorm, then logits over the vocabulary through E_G and a bias (Hugging Face's
`lm_predictions.lm_head`). The loss, and replacements drawn from the same logits (arXiv 2003.10555 section 3.1; arXiv
2111.09543 equation 3), come from one op that never has all logits in memory.
Used by: model/generator.py. Tested by tests/model/test_mlm_head.py.
Not here: the op (kernels/masked_lm_loss/).
"""

# M masked tokens  D hidden width  V vocabulary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.kernels.masked_lm_loss import Draw, MaskedLmLoss, masked_lm_loss
from disentangled.model.config import DebertaConfig
from disentangled.model.layer import activate


class MaskedLanguageHead(nn.Module):
    """Logits over the vocabulary, tied to the generator's embedding table."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: Tensor, word_embeddings: Tensor, labels: Tensor, draw: Draw) -> MaskedLmLoss:
        """States [M, D], E_G [V, D] and labels [M] -> loss, top-1 and drawn ids."""
        return masked_lm_loss(self._transform(states), word_embeddings, self.bias, labels, draw)

    def logits(self, states: Tensor, word_embeddings: Tensor) -> Tensor:
        """States [M, D] and E_G [V, D] -> logits [M, V], fp32 at least: for a few tokens of a finished model."""
        logits = F.linear(self._transform(states), word_embeddings, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _transform(self, states: Tensor) -> Tensor:
        transformed: Tensor = self.LayerNorm(activate(self.dense(states), self.act))
        return transformed
