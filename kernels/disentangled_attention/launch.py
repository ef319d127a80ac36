"""Launches the fused kernels: workspaces and grids; forward and backward of whole tensors.

Workspace. Forward has none; backward has the stored dS of some heads, and with dropout its decisions, a bit a score.
Heads are taken in as many rounds as keep it within WORKSPACE_BYTES (one head at least), each with the same results.
Used by: registered.py, benchmarks/resources.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: the kernels' arguments (attention_call.py), tile sizes (tile_sizes.py), argument checks (op.py), torch.library
(registered.py).
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention.attention_call import Call, Problem, strides_of
from disentangled.kernels.disentangled_attention.backward import key_value_kernel, query_kernel, row_kernel
from disentangled.kernels.disentangled_attention.distance_tables import fold_kernel
from disentangled.kernels.disentangled_attention.forward import forward_kernel
from disentangled.kernels.disentangled_attention.keep_words import WORD_QUERIES, keep_words_kernel
from disentangled.kernels.disentangled_attention.shared_memory_limit import watch_loading
from disentangled.kernels.disentangled_attention.table_gradients import end_gradient_kernel, table_gradient_kernel
from disentangled.kernels.grids import ceil_div

WORKSPACE_BYTES = 256 << 20
# Parts of the tokens that a block of distances is summed in: enough programs to fill a GPU with few heads.
TABLE_SPLITS = 4
FOLD_ROWS = 16
END_ROWS = 64
WORD_KEYS = 256

watch_loading()


def forward(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, problem: Problem
) -> tuple[Tensor, Tensor]:
    """The context, like query, and log-sum-exp of the scores in base 2, float32 [N, query tokens]."""
    call = Call(query, key, value, rel_key, rel_query, problem, "forward")
    new = torch.zeros if call.is_packed else torch.empty
    out = new(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty((call.num_heads, call.num_all_queries), dtype=torch.float32, device=query.device)
    if call.num_documents == 0 or call.num_all_queries == 0:
        return out, lse
    forward_kernel[call.query_tiles, call.num_heads](
        call.query, call.key, call.value, out, lse, call.key_table, call.query_table,
        **call.places, key_whole_ptr=call.key_whole, map_q_ptr=call.map_q, **call.strides,
        num_heads=call.num_heads, num_queries=call.num_queries, num_keys=call.num_keys,
        num_all_queries=call.num_all_queries, **call.tables, **call.draw, keep_scale=call.keep_scale,
        **call.constants, **call.config("forward").options,
    )  # fmt: skip
    return out, lse


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rel_key: Tensor | None,
    rel_query: Tensor | None,
    out: Tensor,
    lse: Tensor,
    problem: Problem,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Gradients with respect to query, key, value, rel_key and rel_query."""
    call = Call(query, key, value, rel_key, rel_query, problem, "key_value")
    device, dtype, block = query.device, query.dtype, call.block
    new = torch.zeros_like if call.is_packed else torch.empty_like
    grad_query, grad_key, grad_value = (new(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    grad_rel_key, grad_rel_query = (
        None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (rel_key, rel_query)
    )
    if call.num_documents == 0 or call.num_all_queries == 0 or call.num_all_keys == 0:
        return grad_query.zero_(), grad_key.zero_(), grad_value.zero_(), grad_rel_key, grad_rel_query

    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    grad_strides = dict(zip(("stride_gb", "stride_gt", "stride_gh"), strides_of(grad_out), strict=True))
    rows = torch.empty((call.num_heads, call.query_tiles, block, 2), dtype=lse.dtype, device=device)
    row_kernel[call.query_tiles, call.num_heads](
        out, grad_out, lse, rows, map_q_ptr=call.map_q, cu_q_ptr=call.places["cu_q_ptr"], **grad_strides,
        num_heads=call.num_heads, num_queries=call.num_queries, num_all_queries=call.num_all_queries,
        keep_scale=call.keep_scale, HEAD_WIDTH=call.head_width, BLOCK_H=call.block_h, BLOCK=block,
        IS_PACKED=call.is_packed, num_warps=4,
    )  # fmt: skip

    left, right = call.tables["last_left"], -call.tables["last_right"]
    width_k, lead_k = call.stored_rows(call.longest_k, left, right)
    width_q, lead_q = call.stored_rows(call.longest_q, right, left)
    by_query_elements, by_key_elements = call.num_all_queries * width_k, call.num_all_keys * width_q
    head_elements = by_query_elements + by_key_elements
    word_rows, word_width = call.word_shape
    head_bytes = head_elements * query.element_size() + 4 * word_rows * word_width
    for first_head, num_heads in _rounds(call.num_heads, head_bytes):
        workspace = torch.empty(num_heads * head_elements, dtype=dtype, device=device)
        by_query, by_key = workspace.split([num_heads * by_query_elements, num_heads * by_key_elements])
        # Zeros, because not every token has a far tile.
        num_sums = num_heads * (call.num_all_queries + call.num_all_keys) if call.has_far else 0
        sums = torch.zeros(2 * num_sums, dtype=torch.float32, device=device)
        key_sums = sums[num_heads * call.num_all_queries :] if call.has_far else sums
        far_key, far_value = torch.empty(
            (2, num_heads, call.num_all_keys if call.has_far else 0, call.head_width),
            dtype=torch.float32, device=device,
        )  # fmt: skip
        shared = {
            **call.strides, **grad_strides, "num_heads": call.num_heads, "num_queries": call.num_queries,
            "num_keys": call.num_keys, "num_all_queries": call.num_all_queries, **call.tables, "scale": call.grad_scale,
            "num_row_tiles": call.query_tiles, "first_head": first_head, **call.constants,
            **keep_words(call, word_rows, word_width, first_head, num_heads),
        }  # fmt: skip
        for is_far in (True, False) if call.has_far else (False,):
            key_value_kernel[call.key_tiles, num_heads](
                call.query, call.key, call.value, grad_out, rows, grad_key, grad_value, far_key, far_value,
                by_query, by_key, call.key_table, call.query_table, key_sums, **call.places,
                map_k_ptr=call.map_k, num_all_keys=call.num_all_keys, num_sums=num_sums,
                width_q=width_q, width_k=width_k, lead_q=lead_q, lead_k=lead_k,
                keep_scale=call.keep_scale, IS_FAR=is_far, **shared,
                **call.config("far_key_value" if is_far else "key_value").options,
            )  # fmt: skip
        query_kernel[call.query_tiles, num_heads](
            call.query, call.key, call.value, grad_out, rows, grad_query, by_query,
            call.key_table, call.query_table, sums, **call.places, map_q_ptr=call.map_q, num_sums=num_sums,
            width_k=width_k, lead_k=lead_k, **shared, **call.config("query").options,
        )  # fmt: skip
        _table_gradients(
            call,
            grad_rel_key,
            grad_rel_query,
            by_query,
            by_key,
            sums,
            num_sums,
            (width_k, lead_k),
            (width_q, lead_q),
            first_head,
            num_heads,
        )
    return grad_query, grad_key, grad_value, grad_rel_key, grad_rel_query


def keep_words(call: Call, rows: int, width: int, first_head: int, num_heads: int) -> dict[str, Any]:
    """Dropout's decisions for some heads, as the kernels take them; rows and width are call.word_shape."""
    words = None
    if call.problem.dropout is not None:
        words = torch.empty((num_heads, rows, width), dtype=torch.int32, device=call.device)
        tiles = rows - 1
        cu_q, cu_k = call.places["cu_q_ptr"], call.places["cu_k_ptr"]
        keep_words_kernel[tiles, ceil_div(width, WORD_KEYS), num_heads](
            words, call.tile_map(cu_q, tiles, WORD_QUERIES) if call.is_packed else None, cu_q, cu_k, **call.draw,
            num_queries=call.num_queries, num_keys=call.num_keys, num_rows=rows, width=width, first_head=first_head,
            BLOCK_K=WORD_KEYS, IS_PACKED=call.is_packed, num_warps=1,
        )  # fmt: skip
    return {"words_ptr": words, "num_word_rows": rows, "word_width": width}


def _table_gradients(
    call: Call, grad_rel_key: Tensor | None, grad_rel_query: Tensor | None,
    by_query: Tensor, by_key: Tensor, sums: Tensor, num_sums: int,
    stored_by_query: tuple[int, int], stored_by_key: tuple[int, int], first_head: int, num_heads: int,
) -> None:  # fmt: skip
    """Writes some heads of the gradients with respect to rel_key and rel_query."""
    table = call.table
    if table is None:
        return
    partial = torch.empty(
        (2, TABLE_SPLITS, num_heads, table.num_rows, call.head_width), dtype=torch.float32, device=call.device
    )
    shared = {
        "live_ptr": call.places["live_ptr"],
        "key_stop_ptr": call.places["key_stop_ptr"],
        **{name: call.tables[name] for name in ("num_table_rows", "table_offset", "last_left", "last_right")},
        "scale": call.grad_scale,
        "first_head": first_head,
        "HEAD_WIDTH": call.head_width,
        "BLOCK_H": call.block_h,
        "BLOCK": call.block,
        "SPLITS": TABLE_SPLITS,
        "HAS_FAR": call.has_far,
        "HAS_MASK": call.constants["HAS_MASK"],
        "IS_PACKED": call.is_packed,
        **call.config("table_gradient").options,
    }
    queries = (
        call.query,
        by_query,
        call.map_q,
        "cu_q_ptr",
        call.num_queries,
        call.num_all_queries,
        stored_by_query,
    )
    keys = (call.key, by_key, call.map_k, "cu_k_ptr", call.num_keys, call.num_all_keys, stored_by_key)
    end_tiles = [ceil_div(x, END_ROWS) if call.has_far else 0 for x in (call.num_all_queries, call.num_all_keys)]
    ends = torch.empty((sum(end_tiles), num_heads, 2, call.head_width), dtype=torch.float32, device=call.device)
    for side, (rows, columns, tiles, sign, gradient) in enumerate(
        ((queries, keys, call.query_tiles, 1, grad_rel_key), (keys, queries, call.key_tiles, -1, grad_rel_query))
    ):
        if gradient is None:
            continue
        x, grad_scores, tile_map, cu_rows, num_rows, num_all_rows, (width, lead) = rows
        strides = dict(zip(("stride_xb", "stride_xt", "stride_xh"), strides_of(x), strict=True))
        blocks = _distance_blocks(table.offset, call.first_row, call.stop_row, call.block, sign)
        table_gradient_kernel[len(blocks), num_heads, TABLE_SPLITS](
            x, grad_scores, partial[side], map_ptr=tile_map,
            cu_rows_ptr=call.places[cu_rows], cu_columns_ptr=call.places[columns[3]], **strides,
            num_rows=num_rows, num_columns=columns[4], num_all_rows=num_all_rows, width=width, lead=lead,
            num_tiles=tiles,
            first_block=blocks.start, SIGN=sign, **shared,
        )  # fmt: skip
        if call.has_far:
            end_gradient_kernel[end_tiles[side], num_heads](
                x, sums[side * num_heads * call.num_all_queries :], ends[side * end_tiles[0] :], **strides,
                num_rows=num_rows, num_all_rows=num_all_rows, num_sums=num_sums, scale=call.grad_scale,
                first_head=first_head, HEAD_WIDTH=call.head_width, BLOCK_H=call.block_h, BLOCK=END_ROWS,
                num_warps=4,
            )  # fmt: skip
    num_slots = 2 * call.problem.positions.att_span
    fold_kernel[num_slots, num_heads, 2](
        partial, ends, grad_rel_key, grad_rel_query, table.row_spans,
        first_row=call.first_row, stop_row=call.stop_row,
        num_rows=table.num_rows, num_slots=num_slots, num_heads=num_heads, num_query_tiles=end_tiles[0],
        num_key_tiles=end_tiles[1], left_slot=table.left_slot, right_slot=table.right_slot, first_head=first_head,
        HEAD_WIDTH=call.head_width, BLOCK_H=call.block_h, BLOCK_U=FOLD_ROWS, SPLITS=TABLE_SPLITS,
        HAS_C2P=grad_rel_key is not None, HAS_P2C=grad_rel_query is not None, HAS_FAR=call.has_far, num_warps=1,
    )  # fmt: skip


def _distance_blocks(offset: int, first_row: int, stop_row: int, block: int, sign: int) -> range:
    """Which blocks of distances (table_gradient_kernel) have table rows first_row .. stop_row - 1.

    A distance's row is offset + sign * distance.
    """
    low, high = sorted((sign * (first_row - offset), sign * (stop_row - 1 - offset)))
    return range(ceil_div(low, block), (high + block - 1) // block + 1)


def _rounds(num_heads: int, head_bytes: int) -> Iterator[tuple[int, int]]:
    """First head and number of heads of each round."""
    step = max(1, min(num_heads, WORKSPACE_BYTES // max(1, head_bytes)))
    for first_head in range(0, num_heads, step):
        yield first_head, min(step, num_heads - first_head)
