"""transformers' DisentangledSelfAttention on tensors that are projected already, for parity and for speed."""

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention, build_relative_position

from disentangled.kernels.disentangled_attention.log_bucket import Positions


class Constant(nn.Module):
    """Stands for a projection whose result the caller already has."""

    def __init__(self, result: Tensor) -> None:
        super().__init__()
        self.result = result

    def forward(self, _hidden: Tensor) -> Tensor:
        return self.result


def huggingface_module(heads: int, head_width: int, positions: Positions, **config: object) -> nn.Module:
    """The module with both position terms and no dropout, in training mode."""
    return DisentangledSelfAttention(
        DebertaV2Config(
            hidden_size=heads * head_width,
            num_attention_heads=heads,
            relative_attention=True,
            pos_att_type=["c2p", "p2c"],
            position_buckets=positions.position_buckets,
            max_relative_positions=positions.max_relative_positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **config,
        )
    )


def huggingface_relative_positions(num_tokens: int, positions: Positions) -> Tensor:
    """Buckets of all pairs, as DebertaV2Encoder makes them once for all layers."""
    layer = torch.empty(1, num_tokens, 1)
    return build_relative_position(layer, layer, positions.position_buckets, positions.max_relative_positions)


def huggingface_attention(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor, rel_query: Tensor, live: Tensor, positions: Positions
) -> Tensor:
    """The module on projected tensors [B, T, N, H] and tables [N, 2k, H]; live bool [B, T]."""
    batch, num_tokens, heads, head_width = query.shape
    module = huggingface_module(heads, head_width, positions, share_att_key=False)
    module.query_proj, module.key_proj, module.value_proj = (Constant(x.flatten(2)) for x in (query, key, value))
    module.pos_key_proj = Constant(rel_key.transpose(0, 1).flatten(1).unsqueeze(0))
    module.pos_query_proj = Constant(rel_query.transpose(0, 1).flatten(1).unsqueeze(0))
    output, _ = module(
        query.new_empty(batch, num_tokens, heads * head_width),
        live[:, None, :, None] & live[:, None, None, :],
        relative_pos=huggingface_relative_positions(num_tokens, positions),
        rel_embeddings=query.new_empty(rel_key.shape[1], heads * head_width),
    )
    return output.view(query.shape)
