"""transformers' DebertaV2 self-attention on this project's op.

`FusedSelfAttention` takes the class of a module that is there already: parameters, names, submodules (LoRA's too) and
hooks stay as they are. It runs the op when its encoder hands it `Tokens` in the place of the attention mask, and
transformers' own code for a mask.
Used by: fused_encoder.py, accelerate.py. Tested by: tests/finetune/test_accelerate.py.
Not here: which calls get Tokens (fused_encoder.py), the op (kernels/disentangled_attention).
"""

# B batch  N tokens of a row  N_heads heads  H head width  R relative rows

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from disentangled.finetune.live_tokens import Tokens
from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention
from disentangled.kernels.disentangled_attention.dispatch import choose_implementation

# Not a run of the trainer: randomness is in the samples' names, and torch's generator draws those.
DROPOUT_SEED = 0


class FusedSelfAttention(DisentangledSelfAttention):
    """The module's projections around the fused op."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | Tokens,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
    ) -> Any:
        """Context [B, N, D] or [1, T, D] of hidden states in the same shape, and None for the probabilities."""
        if not isinstance(attention_mask, Tokens):
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        query, key, value = (
            self._split_heads(project(hidden_states)) for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        rel_key, rel_query = self._project_positions(rel_embeddings)
        context = self._attend(query, key, value, rel_key, rel_query, attention_mask)
        return context.flatten(2), None

    def _split_heads(self, states: Tensor) -> Tensor:
        """[B, N, D] -> [B, N, N_heads, H]."""
        return states.unflatten(2, (self.num_attention_heads, -1))

    def _project_positions(self, rel_embeddings: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """K_r and Q_r, each [N_heads, R, H], or None where the term is off."""
        if not self.relative_attention:
            return None, None
        table = self.pos_dropout(rel_embeddings)[: 2 * self.pos_ebd_size].unsqueeze(0)
        rel_key = rel_query = None
        if "c2p" in self.pos_att_type:
            project: nn.Module = self.key_proj if self.share_att_key else self.pos_key_proj
            rel_key = self._split_heads(project(table))[0].transpose(0, 1)
        if "p2c" in self.pos_att_type:
            project = self.query_proj if self.share_att_key else self.pos_query_proj
            rel_query = self._split_heads(project(table))[0].transpose(0, 1)
        return rel_key, rel_query

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rel_key: Tensor | None,
        rel_query: Tensor | None,
        tokens: Tokens,
    ) -> Tensor:
        """The op on a batch or a run; in a batch a padded query attends to all keys alike, as in transformers."""
        dropout = None
        if self.training and self.dropout.p > 0:
            first_token = torch.zeros_like(tokens.sample)
            stream = Stream.DISCRIMINATOR_ATTENTION_DROPOUT
            dropout = AttentionDropout(self.dropout.p, DROPOUT_SEED, stream, tokens.layer, tokens.sample, first_token)
        # with relative attention off transformers still counts the terms that are named
        num_terms = 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)
        arguments = {
            "position_buckets": self.position_buckets if self.relative_attention else 0,
            "max_relative_positions": self.max_relative_positions if self.relative_attention else 1,
            "scale": (query.shape[-1] * num_terms) ** -0.5,
            "dropout": dropout,
        }
        if tokens.cu_seqlens is not None:
            arguments |= {"cu_seqlens_q": tokens.cu_seqlens, "cu_seqlens_k": tokens.cu_seqlens}
            arguments |= {"max_seqlen_q": tokens.longest, "max_seqlen_k": tokens.longest}
            return _call(query[0], key[0], value[0], rel_key, rel_query, arguments).unsqueeze(0)
        context = _call(query, key, value, rel_key, rel_query, arguments | {"key_padding_mask": tokens.live})
        if tokens.live is None:
            return context
        if dropout is None:
            uniform = value.mean(dim=1, keepdim=True)
        else:
            uniform = _call(torch.zeros_like(query), key, value, None, None, arguments)
        return torch.where(tokens.live[:, :, None, None], context, uniform)


def _call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    arguments: dict[str, Any],
) -> Tensor:
    """The op, which torch.compile takes whole where it is fused kernels, and leaves out where it is plain torch."""
    attend: Callable[..., Tensor] = disentangled_attention
    if (
        torch.compiler.is_compiling()
        and choose_implementation(None, query.device, query.dtype, query.shape[-1]) != "triton"
    ):
        attend = _attend_uncompiled
    return attend(query, key, value, rel_key, rel_query, **arguments)


_attend_uncompiled = torch.compiler.disable(disentangled_attention)
