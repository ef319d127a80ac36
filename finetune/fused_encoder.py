"""transformers' DebertaV2 encoder over the fused self-attention, with all tokens or with the live ones alone.

Like FusedSelfAttention these take the class of an encoder that is there already. `FusedEncoder` computes every token of
a padded batch and equals transformers' everywhere, at padding too. `UnpaddedEncoder` takes padding out before the first
layer and gives zeros there; live tokens are the same. Each call that cannot be had falls back, to all tokens or to
transformers' own code, and says so once.

Hidden states of all layers are given in the batch's shape, each on the path of the gradients.
Used by: accelerate.py. Tested by: tests/finetune/test_accelerate.py, test_fallback.py.
Not here: embeddings, heads and losses, which are transformers' own and read the batch's shape.
"""

# B batch  N tokens of a padded row  T live tokens  D hidden width

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder

from disentangled.finetune.fallback import say_once
from disentangled.finetune.live_tokens import Rows, Tokens, draw_samples, find_rows, pad, unpad

TO_TRANSFORMERS = "transformers' own code runs such calls"
TO_ALL_TOKENS = "padding is computed in such calls"
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedEncoder(DebertaV2Encoder):
    """Every token of the batch, with the fused op."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor,
        output_hidden_states: bool = True,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Hidden states of embeddings [B, N, D] and a mask [B, N]; arguments and results are transformers'."""
        obstacle = find_obstacle(hidden_states, attention_mask, output_attentions, query_states, relative_pos)
        if obstacle is not None:
            say_once(obstacle, TO_TRANSFORMERS)
            return super().forward(
                hidden_states,
                attention_mask,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
                query_states=query_states,
                relative_pos=relative_pos,
                return_dict=return_dict,
            )
        states, collected = self._run_layers(hidden_states, attention_mask, output_hidden_states)
        if not return_dict:
            return (states,) if collected is None else (states, collected)
        return BaseModelOutput(last_hidden_state=states, hidden_states=collected)  # type: ignore[arg-type]

    def _plan(self, live: Tensor) -> tuple[Tokens, Rows | None]:
        """How live tokens, bool [B, N], are computed, and their rows where padding is left out."""
        return Tokens(live, None, live.shape[1], draw_samples(live)), None

    def _run_layers(
        self, embeddings: Tensor, attention_mask: Tensor, keep_all: bool
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """The last hidden state [B, N, D], and all of them where wanted."""
        tokens, rows = self._plan(attention_mask.bool())
        rel_embeddings = self.get_rel_embedding()
        convolution: Any = self.conv
        states, collected = embeddings, [embeddings]
        run = states if rows is None else unpad(states, rows.places)
        for number, layer in enumerate(self.layer):
            run = self._call_layer(layer, run, tokens._replace(layer=number), rel_embeddings)
            is_last = number + 1 == len(self.layer)
            convolves = number == 0 and convolution is not None
            if not (keep_all or is_last or convolves):
                continue
            states = run if rows is None else pad(run, rows.places, (embeddings.shape[0], embeddings.shape[1]))
            if convolves:
                states = convolution(embeddings, states, attention_mask)
            if rows is None:
                run = states
            elif convolves or (torch.is_grad_enabled() and not is_last):
                run = unpad(states, rows.places)  # so that gradients of this hidden state can be asked for
            collected.append(states)
        return states, tuple(collected) if keep_all else None

    def _call_layer(self, layer: nn.Module, run: Tensor, tokens: Tokens, rel_embeddings: Tensor | None) -> Tensor:
        """One layer, by position, so that checkpointing sees every tensor."""
        arguments = (run, tokens, None, None, rel_embeddings, False)
        # transformers 4 checkpoints in the encoder, transformers 5 in the layer itself
        if self.gradient_checkpointing and self.training and not hasattr(layer, "gradient_checkpointing"):
            recompute: Any = self._gradient_checkpointing_func
            outputs: tuple[Tensor, None] = recompute(layer.__call__, *arguments)
        else:
            outputs = layer(*arguments)
        return outputs[0]


class UnpaddedEncoder(FusedEncoder):
    """The live tokens of the batch alone, with the fused op."""

    def _plan(self, live: Tensor) -> tuple[Tokens, Rows | None]:
        return plan_live_tokens(self, live)


@torch.compiler.disable
def plan_live_tokens(encoder: FusedEncoder, live: Tensor) -> tuple[Tokens, Rows | None]:
    """Live tokens alone, where there is padding and nothing inside the layers sees the batch's shape."""
    hooked = next(hooked_modules(encoder), None)
    rows = find_rows(live) if hooked is None else f"a hook on {hooked} expects hidden states in the batch's shape"
    longest, sample = live.shape[1], draw_samples(live)
    if isinstance(rows, str):
        say_once(rows, TO_ALL_TOKENS)
        return Tokens(live, None, longest, sample), None
    if rows.places.numel() == live.numel():
        return Tokens(None, None, longest, sample), None
    return Tokens(None, rows.cu_seqlens, longest, sample), rows


def hooked_modules(encoder: FusedEncoder) -> Iterator[str]:
    """Names of the modules inside the layers that have hooks."""
    for number, layer in enumerate(encoder.layer):
        for name, module in layer.named_modules():
            if any(getattr(module, hooks) for hooks in HOOKS):
                yield f"layer.{number}.{name}"


def find_obstacle(
    hidden_states: Any,
    attention_mask: Any,
    output_attentions: bool,
    query_states: Tensor | None,
    relative_pos: Tensor | None,
) -> str | None:
    """Why the fused op cannot run this call; None: it can."""
    if output_attentions:
        return "output_attentions asks for probabilities, which the fused op never has"
    if query_states is not None:
        return "queries come from other states than keys (query_states)"
    if relative_pos is not None:
        return "relative positions are given (relative_pos)"
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or isinstance(hidden_states, torch.fx.Proxy):
        return "the model is traced or exported"
    if hidden_states.is_meta:
        return "tensors on the device meta have no lengths"
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return "the attention mask is not [B, N]"
    return None
