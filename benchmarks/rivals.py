"""How each implementation is called: ours, two libraries, transformers' eager code, FlexAttention, plain SDPA.

An adapter gets a Problem and gives a Prepared: a function without arguments from leaves to the output. What a model
would do once a step or less (masks, index tables, the choice of table rows, kernel configurations) is done before;
what it does in every layer is timed. Views only lead from the model's layout to the library's and back, so a copy that
is timed is one that the implementation makes.

Adapters import their library when they are called: one that is not installed is a failed row, and no more.

Used by: benchmarks/ops.py. Tested by: tests/benchmarks/test_ops.py, those that run on a CPU.
Not here: other layouts than an implementation takes, such as packed input for transformers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_problem import (
    DTYPES,
    HEAD_WIDTH,
    MAX_RELATIVE_POSITIONS,
    POSITION_BUCKETS,
    SCALE,
    Problem,
    position_keywords,
)
from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.kernels.disentangled_attention.log_bucket import Positions

# B batch  T tokens of a row  N heads  H head width  R table rows
POSITIONS = Positions(POSITION_BUCKETS, MAX_RELATIVE_POSITIONS)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A call that can be timed.

    forward      gives the output in the layout of Problem.query
    leaves       query, key, value, and the tables where the implementation has position terms
    table_rows   which rows of a table its leaf begins with; None: all of them
    detail       what else decides the speed, such as tile sizes
    """

    forward: Callable[[], Tensor]
    leaves: tuple[Tensor, ...]
    table_rows: Tensor | None = None
    detail: str = ""


@dataclass(frozen=True)
class Implementation:
    """An adapter and what it can take. slow_start: it compiles or searches for tens of seconds, so it comes last."""

    label: str
    prepare: Callable[[Problem], Prepared]
    is_library: bool = False
    layouts: tuple[str, ...] = ("dense", "padded", "packed")
    has_dropout: bool = True
    has_positions: bool = True
    slow_start: bool = False

    def takes(self, layout: str, dropout: float) -> bool:
        return layout in self.layouts and (self.has_dropout or dropout == 0)


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def _content_leaves(problem: Problem) -> tuple[Tensor, Tensor, Tensor]:
    return _leaf(problem.query), _leaf(problem.key), _leaf(problem.value)


def _all_leaves(problem: Problem) -> tuple[Tensor, ...]:
    return (*_content_leaves(problem), _leaf(problem.rel_key), _leaf(problem.rel_query))


def prepare_ours(problem: Problem, implementation: str) -> Prepared:
    """Our op; packed input has the bound on the lengths that a packing loader knows."""
    leaves = _all_leaves(problem)
    keywords = position_keywords() | {"dropout": problem.dropout, "implementation": implementation}
    if problem.cu_seqlens is not None:
        longest = problem.setting.length_tokens
        keywords |= {"cu_seqlens_q": problem.cu_seqlens, "cu_seqlens_k": problem.cu_seqlens}
        keywords |= {"max_seqlen_q": longest, "max_seqlen_k": longest}
    elif problem.setting.layout == "padded":
        keywords |= {"key_padding_mask": problem.live}
    return Prepared(partial(disentangled_attention, *leaves, **keywords), leaves)


def prepare_disentangled_flash(problem: Problem, autotuned: bool) -> Prepared:
    """DisentangledFlash's training ops, with the tile sizes of its own heuristic or with those of its own search."""
    from disentangled_flash.position import SharedPositionPlanCache, pad_position_table
    from disentangled_flash.training._kernels import training_attention, training_attention_packed
    from disentangled_flash.tuning import DeviceResources, heuristic_config

    setting = problem.setting
    device = problem.query.device
    plan = SharedPositionPlanCache(
        position_buckets=POSITION_BUCKETS,
        max_relative_positions=MAX_RELATIVE_POSITIONS,
        position_embedding_size=POSITION_BUCKETS,
    ).compact(setting.length_tokens, device)
    tables = (_leaf(pad_position_table(table[:, plan.active_slots])) for table in (problem.rel_key, problem.rel_query))
    leaves = (*_content_leaves(problem), *tables)
    configs: dict[str, Any] = {"forward_config": None, "dq_config": None, "dkv_config": None}
    if not autotuned:
        phases = ("training_forward", "backward_dq", "backward_dkv")
        configs = {
            name: heuristic_config(
                phase=phase,
                sequence_length=setting.length_tokens,
                head_dim=HEAD_WIDTH,
                dtype=str(DTYPES[setting.dtype]).removeprefix("torch."),
                batch_heads=len(problem.documents) * setting.heads,
                resources=DeviceResources.current(device),
            )
            for name, phase in zip(configs, phases, strict=True)
        }
    keywords = configs | {
        "score_scale": SCALE,
        "strict_fp32": True,
        "dropout_p": setting.dropout,
        "gradient_band": plan.gradient_band,
    }

    def forward_packed() -> Tensor:
        query, key, value = (x.transpose(0, 1) for x in leaves[:3])
        output = training_attention_packed(
            query, key, value, *leaves[3:], plan.delta_to_local, problem.cu_seqlens,
            max_seqlen=setting.length_tokens, **keywords,
        )  # fmt: skip
        return output.view(problem.query.shape)

    def forward() -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in leaves[:3])
        output = training_attention(
            query, key, value, *leaves[3:], plan.delta_to_local, problem.live,
            has_padding=setting.layout == "padded", **keywords,
        )  # fmt: skip
        return output.view(problem.query.shape)

    detail = "autotuned" if autotuned else ", ".join(f"{name} {config}" for name, config in configs.items())
    return Prepared(forward if problem.cu_seqlens is None else forward_packed, leaves, plan.active_slots, detail)


def prepare_flashdeberta(problem: Problem) -> Prepared:
    """FlashDeBERTa's kernels for right-padded and for packed input."""
    from flashdeberta.ops.flash_attention import flash_attention_with_disentangled
    from flashdeberta.ops.flash_attention_varlen import flash_attention_with_disentangled_varlen

    leaves = _all_leaves(problem)
    lengths = None
    if problem.setting.layout == "padded":
        lengths = torch.tensor(problem.lengths, dtype=torch.int32, device=problem.query.device)
    longest = problem.setting.length_tokens
    rest = (False, SCALE, POSITION_BUCKETS, MAX_RELATIVE_POSITIONS)

    def forward_packed() -> Tensor:
        tables = (table[None] for table in leaves[3:])
        starts = problem.cu_seqlens
        return flash_attention_with_disentangled_varlen(*leaves[:3], *tables, starts, starts, longest, longest, *rest)

    def forward() -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in leaves[:3])
        tables = (table[None] for table in leaves[3:])
        return flash_attention_with_disentangled(query, key, value, lengths, *tables, *rest).transpose(1, 2)

    return Prepared(forward if problem.cu_seqlens is None else forward_packed, leaves)


def prepare_eager(problem: Problem) -> Prepared:
    """transformers' DisentangledSelfAttention between projections and context, positions and mask made beforehand."""
    from tests.kernels.huggingface_attention import Constant, huggingface_module, huggingface_relative_positions

    leaves = _all_leaves(problem)
    batch, num_tokens, heads, head_width = problem.query.shape
    module: Any = huggingface_module(heads, head_width, POSITIONS, share_att_key=False)
    module.dropout = torch.nn.Dropout(problem.setting.dropout)
    assert problem.live is not None
    mask = problem.live[:, None, :, None] & problem.live[:, None, None, :]
    relative_positions = huggingface_relative_positions(num_tokens, POSITIONS).to(problem.query.device)
    hidden = problem.query.new_empty(batch, num_tokens, heads * head_width)
    rel_embeddings = problem.query.new_empty(2 * POSITION_BUCKETS, heads * head_width)

    projections = [Constant(x) for x in leaves]
    module.query_proj, module.key_proj, module.value_proj, module.pos_key_proj, module.pos_query_proj = projections

    def forward() -> Tensor:
        content, tables = (x.flatten(2) for x in leaves[:3]), (x.transpose(0, 1).flatten(1)[None] for x in leaves[3:])
        for projection, result in zip(projections, (*content, *tables), strict=True):
            projection.result = result
        output, _ = module(hidden, mask, relative_pos=relative_positions, rel_embeddings=rel_embeddings)
        return output.view(problem.query.shape)

    return Prepared(forward, leaves)


def prepare_flex(problem: Problem) -> Prepared:
    """FlexAttention: products with the tables first, gathered in a score_mod.

    The products are float32, because their gradients are summed by atomic additions, thousands into one place.
    """
    import torch._functorch.config
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch.compiler.reset()  # at its limit of recompilations torch falls back to eager code, silently slow
    leaves = _all_leaves(problem)
    device = problem.query.device
    is_packed = problem.cu_seqlens is not None
    num_tokens = problem.query.shape[-3]
    slots = POSITIONS.slots(num_tokens, num_tokens, device).to(torch.int32)
    block_mask = None
    if is_packed:
        lengths = torch.tensor(problem.lengths, device=device)
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        block_mask = create_block_mask(
            lambda b, h, i, j: owner[i] == owner[j], None, None, num_tokens, num_tokens, device=device
        )
    elif problem.setting.layout == "padded" and (live := problem.live) is not None:
        block_mask = create_block_mask(
            lambda b, h, i, j: live[b, j], live.shape[0], None, num_tokens, num_tokens, device=device
        )

    def attend(query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor, rel_query: Tensor) -> Tensor:
        c2p = (query @ rel_key.transpose(-1, -2)).float()  # [B, N, T, R]
        p2c = (key @ rel_query.transpose(-1, -2)).float()

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            slot = slots[i - j + num_tokens - 1]
            return score + SCALE * (c2p[b, h, i, slot] + p2c[b, h, j, slot])

        return flex_attention(query, key, value, score_mod=score_mod, block_mask=block_mask, scale=SCALE)

    compiled = torch.compile(attend, dynamic=False, fullgraph=True)

    def forward() -> Tensor:
        # With donated buffers backward could not be repeated, and so not be timed alone.
        with torch._functorch.config.patch(donated_buffer=False):
            content = (x.unsqueeze(0) if is_packed else x for x in leaves[:3])
            output = compiled(*(x.transpose(1, 2) for x in content), *leaves[3:])
        return output.transpose(1, 2).view(problem.query.shape)

    return Prepared(forward, leaves)


def prepare_sdpa(problem: Problem) -> Prepared:
    """torch's attention without position terms: the ceiling. Packed input takes torch.nn.attention.varlen."""
    leaves = _content_leaves(problem)
    if problem.cu_seqlens is not None:
        from torch.nn.attention.varlen import varlen_attn

        starts, longest = problem.cu_seqlens, problem.setting.length_tokens
        # Its own scale, on which no time depends, and without dropout, which it does not have.
        attend: Any = partial(varlen_attn, *leaves, starts, starts, longest, longest)
        return Prepared(attend, leaves, detail="never has dropout")

    mask = None
    if problem.setting.layout == "padded" and problem.live is not None:
        mask = problem.live[:, None, None, :]

    def forward() -> Tensor:
        query, key, value = (x.transpose(1, 2) for x in leaves)
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=problem.setting.dropout, scale=SCALE
        )
        return output.transpose(1, 2)

    return Prepared(forward, leaves)


# In the order in which they are timed. "triton" and "torch" are our op's own names.
IMPLEMENTATIONS = {
    "triton": Implementation("ours (triton)", partial(prepare_ours, implementation="triton")),
    "torch": Implementation("ours (torch)", partial(prepare_ours, implementation="torch")),
    "disentangled_flash": Implementation(
        "DisentangledFlash", partial(prepare_disentangled_flash, autotuned=False), is_library=True
    ),
    "flashdeberta": Implementation("FlashDeBERTa", prepare_flashdeberta, is_library=True, has_dropout=False),
    "sdpa": Implementation("SDPA without positions", prepare_sdpa, has_positions=False),
    "eager": Implementation("transformers eager", prepare_eager, layouts=("dense", "padded")),
    "disentangled_flash_autotuned": Implementation(
        "DisentangledFlash, autotuned",
        partial(prepare_disentangled_flash, autotuned=True),
        is_library=True,
        slow_start=True,
    ),
    "flex": Implementation("FlexAttention", prepare_flex, has_dropout=False, slow_start=True),
}
OURS = ("triton", "torch")
GPU_DEFAULT = tuple(name for name in IMPLEMENTATIONS if name != "torch")
CPU_DEFAULT = ("torch", "eager", "sdpa")
