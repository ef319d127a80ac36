"""Which tokens of a padded batch are live, and the way of hidden states to the live ones alone and back.

A batch [B, N, D] whose padding stands at the end of its rows becomes one flat run [1, T, D] of T live tokens; it keeps
three dimensions, which is what modules around a layer (adapters, checkpointing) are used to. `Tokens` says how a run or
a batch is cut into documents; it takes the place of the attention mask on its way to the self-attention.
Used by: fused_encoder.py, fused_attention.py. Tested by: tests/finetune/test_live_tokens.py.
Not here: packed batches of pre-training (model/layout.py).
"""

# B batch  N tokens of a padded row  T live tokens  D hidden width

from typing import Any, NamedTuple

import torch
from torch import Tensor

# counter_rng has 48 bits for a sample
SAMPLE_VALUES = 1 << 48


class Tokens(NamedTuple):
    """How the tokens of hidden states are cut into documents; a tuple, so that whatever moves tensors finds them.

    live         bool [B, N] of a padded batch that has padding
    cu_seqlens   int32 [B + 1] of a flat run
    longest      a bound of the documents' lengths
    sample       int64 [B], what names the decisions of attention dropout; drawn anew for each forward pass
    layer        which layer of the encoder it is handed to
    """

    live: Tensor | None
    cu_seqlens: Tensor | None
    longest: int
    sample: Tensor
    layer: int = 0


class Rows(NamedTuple):
    """Where the live tokens of a batch stand: `places` int64 [T] among its B * N tokens."""

    places: Tensor
    cu_seqlens: Tensor


def find_rows(live: Tensor) -> Rows | str:
    """The live tokens of bool [B, N], or why they cannot be computed alone. Makes a GPU wait, once."""
    num_rows, num_columns = live.shape
    lengths = live.sum(dim=1)
    columns = torch.arange(num_columns, device=live.device)
    is_prefix = (live == (columns < lengths[:, None])).all()
    *counts, prefixes_only = torch.cat([lengths, is_prefix[None].long()]).tolist()
    if not prefixes_only:
        return "a row has padding before a live token"
    if min(counts, default=0) == 0:
        return "a row has no live token"
    num_tokens = sum(counts)
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    skipped = torch.arange(num_rows, device=live.device) * num_columns - starts[:-1]  # padding in the rows above
    places = torch.arange(num_tokens, device=live.device)
    places = places + skipped.repeat_interleave(lengths, output_size=num_tokens)
    return Rows(places, starts.to(torch.int32))


def draw_samples(live: Tensor) -> Tensor:
    """Fresh names for the dropout of each row, from torch's own generator: `torch.manual_seed` repeats them."""
    return torch.randint(SAMPLE_VALUES, (live.shape[0],), device=live.device)


def unpad(states: Tensor, places: Tensor) -> Tensor:
    """[B, N, D] to its live tokens [1, T, D]."""
    taken: Tensor = _Unpad.apply(states, places)
    return taken


def pad(states: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
    """[1, T, D] to [B, N, D], zeros at padding."""
    placed: Tensor = _Pad.apply(states, places, shape)
    return placed


class _Unpad(torch.autograd.Function):
    """The adjoint of _Pad; torch's own gradient of an index would add into place, with atomics on a GPU."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = tuple(states.shape[:2])
        return states.flatten(0, 1).index_select(0, places).unsqueeze(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        return pad(grad, places, ctx.shape), None


class _Pad(torch.autograd.Function):
    """The adjoint of _Unpad."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, places: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(places)
        padded = states.new_zeros((shape[0] * shape[1], states.shape[2]))
        return padded.index_copy_(0, places, states.squeeze(0)).view(*shape, -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        return unpad(grad, places), None, None
