"""Disentangled self-attention of DeBERTa (arXiv 2006.03654 section 3.1): projections around the fused op.

What: content-to-content, content-to-position (c2p) and position-to-content (p2c) scores, one softmax. Module and
parameter names are Hugging Face's.
Used by: model/layer.py. Tested by tests/model/test_parity.py.
Not here: the scores themselves (kernels/disentangled_attention), residual and LayerNorm (model/layer.py).
"""

# T flat tokens  D hidden width  N heads  H head width  R relative rows (2 * att_span)

import torch
from torch import Tensor, nn

from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.model.config import DebertaConfig
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise, attention_dropout, drop_relative


class DisentangledSelfAttention(nn.Module):
    """Attention of T tokens over their documents with relative positions as second and third score terms."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.query_proj = nn.Linear(width, width)
        self.key_proj = nn.Linear(width, width)
        self.value_proj = nn.Linear(width, width)
        if not config.share_att_key:
            if "c2p" in config.pos_att_type:
                self.pos_key_proj = nn.Linear(width, width)
            if "p2c" in config.pos_att_type:
                self.pos_query_proj = nn.Linear(width, width)

    def project_keys(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [T, D] of states [T, D]; the mask decoder shares one pair between its two passes."""
        return self.key_proj(states), self.value_proj(states)

    def project_positions(
        self, rel_embeddings: Tensor, noise: Noise | None, layer: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """K_r (for c2p) and Q_r (for p2c), each [N, R, H] or None, from the relative table [R, D]."""
        config = self.config
        table = drop_relative(rel_embeddings, config.hidden_dropout_prob, noise, layer)
        rel_key = rel_query = None
        if "c2p" in config.pos_att_type:
            rel_key = self._split_heads(self.key_proj(table) if config.share_att_key else self.pos_key_proj(table))
        if "p2c" in config.pos_att_type:
            rel_query = self._split_heads(
                self.query_proj(table) if config.share_att_key else self.pos_query_proj(table)
            )
        return rel_key, rel_query

    def attend(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        positions: tuple[Tensor | None, Tensor | None],
        layout: TokenLayout,
        noise: Noise | None,
        layer: int,
    ) -> Tensor:
        """Context [T, D] of projected queries, keys and values, each [T, D]."""
        config = self.config
        heads = config.num_attention_heads
        context: Tensor = disentangled_attention(
            layout.shape_heads(queries, heads),
            layout.shape_heads(keys, heads),
            layout.shape_heads(values, heads),
            *positions,
            position_buckets=config.position_buckets,
            max_relative_positions=config.relative_span,
            scale=config.attention_scale,
            dropout=attention_dropout(config.attention_probs_dropout_prob, noise, layout, layer),
            **layout.attention_arguments(),
        )
        return context.reshape(layout.num_tokens, config.hidden_size)

    def forward(
        self, states: Tensor, rel_embeddings: Tensor, layout: TokenLayout, noise: Noise | None, layer: int
    ) -> Tensor:
        """Self-attention of states [T, D] with the relative table [R, D]; returns [T, D]."""
        keys, values = self.project_keys(states)
        positions = self.project_positions(rel_embeddings, noise, layer)
        return self.attend(self.query_proj(states), keys, values, positions, layout, noise, layer)

    def _split_heads(self, table: Tensor) -> Tensor:
        return table.view(table.shape[0], self.config.num_attention_heads, -1).transpose(0, 1)


def masked_rows_to_run(rows: Tensor, states: Tensor, num_tokens: int) -> Tensor:
    """Spread states [M, D] of tokens `rows` [M] over a zero run [T, D], so that they may query in place."""
    run = torch.zeros(num_tokens, states.shape[1], dtype=states.dtype, device=states.device)
    return run.index_copy(0, rows, states)
