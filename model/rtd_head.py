"""Replaced token detection: the head and its loss.

What: LayerNorm(h + h_CLS) -> dense -> activation -> one logit per token, h_CLS being the first token of the token's own
document (the original's `mask_predictions`, not ELECTRA's head). Label 1 = replaced. All live tokens count, [CLS] and
[SEP] too, as in the original (arXiv 2111.09543 equation 4).
Used by: model/discriminator.py. Tested by tests/model/test_rtd_head.py.
"""

# T flat tokens  D hidden width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.layer import activate
from disentangled.model.layout import TokenLayout


class ReplacedTokenHead(nn.Module):
    """One logit per token: positive where the token looks replaced."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.act = config.hidden_act
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, states: Tensor, layout: TokenLayout) -> Tensor:
        """States [T, D] -> logits [T], fp32 at least."""
        with_document = self.LayerNorm(states + states[layout.document_start])
        logits = self.classifier(activate(self.dense(with_document), self.act)).squeeze(-1)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))


def rtd_loss_sum(logits: Tensor, is_replaced: Tensor, live: Tensor) -> Tensor:
    """Binary cross-entropy summed over live tokens. logits [T], is_replaced [T] bool, live [T] bool -> scalar."""
    losses = F.binary_cross_entropy_with_logits(logits, is_replaced.to(logits.dtype), reduction="none")
    return (losses * live).sum()
