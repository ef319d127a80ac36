"""Launches the fused kernels: tile sizes, workspaces, pointers and strides; forward and backward of whole tensors.

Scales. The kernels' scores are in units of PRESCALE and become logits in base 2 inside the exponential, where
`postscale` is applied in float32. PRESCALE is 1 but for float16, whose position terms could overflow: there it is the
power of two in scale * log2(e), so multiplying queries and tables by it is exact.

Workspace. Forward has one tile of scratch for each program; backward also has the stored dS of some heads. Heads are
taken in as many rounds as keep it within WORKSPACE_BYTES (one head at least), each with the same results.
Used by: registered.py, benchmarks/resources.py. Tested by: tests/kernels/test_triton_attention.py.
Not here: argument checks (op.py); torch.library (registered.py).
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from disentangled.kernels.counter_rng import drop_threshold, keep_scale
from disentangled.kernels.counter_rng_triton import key_words
from disentangled.kernels.disentangled_attention.backward import delta_kernel, key_value_kernel, query_kernel
from disentangled.kernels.disentangled_attention.distance_tables import (
    DistanceTable,
    distance_table,
    expand_kernel,
    fold_kernel,
)
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from disentangled.kernels.disentangled_attention.forward import forward_kernel
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from disentangled.kernels.disentangled_attention.table_gradients import end_gradient_kernel, table_gradient_kernel
from disentangled.kernels.disentangled_attention.tiles import tile_map_kernel

WORKSPACE_BYTES = 256 << 20
# Parts of the tokens that a block of distances is summed in: enough programs to fill a GPU with few heads.
TABLE_SPLITS = 4
FOLD_ROWS = 16
END_ROWS = 64
NO_LIMIT = 1 << 30
# Hopper's and Blackwell's for data centres: products read their operands from shared memory.
LARGE_TILE_CAPABILITIES = (90, 100, 103)


@dataclass(frozen=True)
class Config:
    """Tile size and compiler options of one kernel."""

    block: int
    num_warps: int = 4
    num_stages: int = 2

    @property
    def options(self) -> dict[str, int]:
        """What a launch is given besides the kernel's arguments."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}


def config(
    kernel: str, head_width: int, dtype: torch.dtype, has_mask: bool, has_dropout: bool, capability: int = 90
) -> Config:
    """What a kernel is launched with: the largest tiles that spill no register, by benchmarks/resources.py.

    All kernels of the backward pass have one tile size, as they share what is stored by tiles. Before Hopper, and on
    GPUs for graphics, operands of products are held in registers and 64 x 64 tiles do not fit.
    """
    if dtype == torch.float32:
        return Config(block=16, num_warps=8, num_stages=1)
    has_room = capability in LARGE_TILE_CAPABILITIES
    if head_width > 64:
        if has_dropout and not has_room:
            return Config(block=16, num_stages=1)
        return Config(block=32, num_warps=4 if kernel == "table_gradient" else 8, num_stages=1)
    if not has_room:
        return Config(block=32, num_stages=1)
    if has_dropout and (has_mask or kernel != "forward"):
        return Config(block=32)
    return Config(block=64, num_stages=1 if has_dropout or kernel == "far_key_value" else 2)


@functools.cache
def capability_of(device: torch.device) -> int:
    """10 x compute capability; that of an H100 where there is none, as in the interpreter."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@dataclass(frozen=True, eq=False)
class Problem:
    """What an attention call is, besides its five tensors; op.py documents the fields."""

    positions: Positions
    scale: float
    key_padding_mask: Tensor | None = None
    cu_seqlens_q: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    max_seqlen_q: int | None = None
    max_seqlen_k: int | None = None
    dropout: AttentionDropout | None = None


def forward(
    query: Tensor, key: Tensor, value: Tensor, rel_key: Tensor | None, rel_query: Tensor | None, problem: Problem
) -> tuple[Tensor, Tensor]:
    """The context, like query, and log-sum-exp of the scores in base 2, float32 [N, query tokens]."""
    call = _Call(query, key, value, rel_key, rel_query, problem, "forward")
    new = torch.zeros if call.is_packed else torch.empty
    out = new(query.shape, dtype=query.dtype, device=query.device)
    lse = torch.empty((call.num_heads, call.num_all_queries), dtype=torch.float32, device=query.device)
    if call.num_documents == 0 or call.num_all_queries == 0:
        return out, lse
    scratch_elements = call.query_tiles * 4 * call.block**2
    for first_head, num_heads in _rounds(call.num_heads, scratch_elements * query.element_size()):
        forward_kernel[call.query_tiles, num_heads](
            call.query, call.key, call.value, out, lse, call.key_table, call.query_table,
            torch.empty(num_heads * scratch_elements, dtype=query.dtype, device=query.device),
            **call.places, map_q_ptr=call.map_q, **call.strides,
            num_heads=call.num_heads, num_queries=call.num_queries, num_keys=call.num_keys,
            num_all_queries=call.num_all_queries, **call.tables, **call.random, first_head=first_head,
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
    call = _Call(query, key, value, rel_key, rel_query, problem, "key_value")
    device, dtype, block = query.device, query.dtype, call.block
    new = torch.zeros_like if call.is_packed else torch.empty_like
    grad_query, grad_key, grad_value = (new(x, memory_format=torch.contiguous_format) for x in (query, key, value))
    grad_rel_key, grad_rel_query = (
        None if x is None else torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (rel_key, rel_query)
    )
    if call.num_documents == 0 or call.num_all_queries == 0 or call.num_all_keys == 0:
        return grad_query.zero_(), grad_key.zero_(), grad_value.zero_(), grad_rel_key, grad_rel_query

    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    grad_strides = dict(zip(("stride_gb", "stride_gt", "stride_gh"), _strides(grad_out), strict=True))
    delta = torch.empty_like(lse)
    delta_kernel[triton.cdiv(call.num_all_queries, 64), call.num_heads](
        out, grad_out, delta, **grad_strides,
        num_heads=call.num_heads, num_queries=call.num_queries, num_all_queries=call.num_all_queries,
        HEAD_WIDTH=call.head_width, BLOCK_H=call.block_h, BLOCK=64, num_warps=4,
    )  # fmt: skip

    left, right = call.tables["last_left"], -call.tables["last_right"]
    width_k, lead_k = call.stored_rows(call.longest_k, left, right)
    width_q, lead_q = call.stored_rows(call.longest_q, right, left)
    scratch_elements = call.key_tiles * 4 * block**2
    by_query_elements, by_key_elements = call.num_all_queries * width_k, call.num_all_keys * width_q
    head_elements = scratch_elements + by_query_elements + by_key_elements
    for first_head, num_heads in _rounds(call.num_heads, head_elements * query.element_size()):
        workspace = torch.empty(num_heads * head_elements, dtype=dtype, device=device)
        by_query, by_key, scratch = workspace.split(
            [num_heads * by_query_elements, num_heads * by_key_elements, num_heads * scratch_elements]
        )
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
            "num_keys": call.num_keys, "num_all_queries": call.num_all_queries, **call.tables, "scale": problem.scale,
            **call.random, "first_head": first_head, **call.constants,
        }  # fmt: skip
        for is_far in (True, False) if call.has_far else (False,):
            key_value_kernel[call.key_tiles, num_heads](
                call.query, call.key, call.value, grad_out, lse, delta, grad_key, grad_value, far_key, far_value,
                by_query, by_key, call.key_table, call.query_table, key_sums, scratch, **call.places,
                map_k_ptr=call.map_k, num_all_keys=call.num_all_keys, num_sums=num_sums,
                width_q=width_q, width_k=width_k, lead_q=lead_q, lead_k=lead_k,
                IS_FAR=is_far, **shared, **call.config("far_key_value" if is_far else "key_value").options,
            )  # fmt: skip
        query_kernel[call.query_tiles, num_heads](
            call.query, call.key, call.value, grad_out, lse, delta, grad_query, by_query,
            call.key_table, call.query_table, sums, **call.places, map_q_ptr=call.map_q, num_sums=num_sums,
            width_k=width_k, lead_k=lead_k, **shared, **call.config("query").options,
        )  # fmt: skip
        call.table_gradients(
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


class _Call:
    """The kernels' arguments for one call: contiguous head rows, expanded tables, tile maps, scalars, constants."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rel_key: Tensor | None,
        rel_query: Tensor | None,
        problem: Problem,
        kernel: str,
    ) -> None:
        self.query, self.key, self.value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
        self.device, self.dtype, self.problem = query.device, query.dtype, problem
        self.is_packed = query.dim() == 3
        self.num_heads, self.head_width = query.shape[-2:]
        self.block_h = max(16, triton.next_power_of_2(self.head_width))
        self.block = self.config(kernel).block
        self.num_all_queries, self.num_all_keys = math.prod(query.shape[:-2]), math.prod(key.shape[:-2])
        self.num_queries, self.num_keys = query.shape[-3], key.shape[-3]
        self.map_q: Tensor | None = None
        self.map_k: Tensor | None = None
        if self.is_packed:
            cu_q, cu_k = problem.cu_seqlens_q, problem.cu_seqlens_k
            assert cu_q is not None and cu_k is not None, "op.py has checked this"
            self.num_documents = len(cu_q) - 1
            # Without a named bound the run itself is one; the host does not read cu_seqlens.
            self.longest_q = min(self.num_queries, problem.max_seqlen_q or self.num_queries)
            self.longest_k = min(self.num_keys, problem.max_seqlen_k or self.num_keys)
            self.query_tiles = self.num_queries // self.block + self.num_documents
            self.key_tiles = self.num_keys // self.block + self.num_documents
            self.map_q = self._tile_map(cu_q, self.query_tiles)
            self.map_k = self.map_q if cu_k is cu_q else self._tile_map(cu_k, self.key_tiles)
        else:
            cu_q = cu_k = None
            self.num_documents = query.shape[0]
            self.longest_q, self.longest_k = self.num_queries, self.num_keys
            self.query_tiles = self.num_documents * triton.cdiv(self.num_queries, self.block)
            self.key_tiles = self.num_documents * triton.cdiv(self.num_keys, self.block)
        mask, key_stop = problem.key_padding_mask, None
        if mask is not None:
            mask = mask.contiguous().view(torch.uint8)
            place = torch.arange(1, self.num_keys + 1, dtype=torch.int32, device=self.device)
            key_stop = (mask * place).amax(dim=1) if self.num_keys else None
        dropout = problem.dropout
        self.places: dict[str, Any] = {
            "live_ptr": mask,
            "key_stop_ptr": key_stop,
            "cu_q_ptr": cu_q,
            "cu_k_ptr": cu_k,
            "sample_ptr": None if dropout is None else dropout.sample.to(self.device),
            "first_token_ptr": None if dropout is None else dropout.first_token.to(self.device),
        }
        self.strides = {
            f"stride_{name}{axis}": stride
            for name, x in (("q", self.query), ("k", self.key), ("v", self.value))
            for axis, stride in zip("bth", _strides(x), strict=True)
        }
        key_0, key_1 = key_words(0 if dropout is None else dropout.seed)
        self.random = {
            "key_0": key_0,
            "key_1": key_1,
            "stream": 0 if dropout is None else int(dropout.stream),
            "layer": 0 if dropout is None else dropout.layer,
            "threshold": 0 if dropout is None else drop_threshold(dropout.probability),
            "keep_scale": 1.0 if dropout is None else keep_scale(dropout.probability),
        }
        self._set_tables(rel_key, rel_query)
        self.constants = {
            "PRESCALE": self.prescale,
            "HEAD_WIDTH": self.head_width,
            "BLOCK_H": self.block_h,
            "BLOCK": self.block,
            "HAS_C2P": rel_key is not None,
            "HAS_P2C": rel_query is not None,
            "HAS_FAR": self.has_far,
            "HAS_MASK": mask is not None,
            "HAS_DROPOUT": dropout is not None,
            "IS_PACKED": self.is_packed,
        }

    def config(self, kernel: str) -> Config:
        """Of a kernel in this call."""
        problem = self.problem
        has_mask, has_dropout = problem.key_padding_mask is not None, problem.dropout is not None
        return config(kernel, self.block_h, self.dtype, has_mask, has_dropout, capability_of(self.device))

    def stored_rows(self, longest: int, last: int, other_last: int) -> tuple[int, int]:
        """Columns of a row of the stored dS, and how many of them come before the row's own tile.

        `longest` row; distances from the row back to `last` and on to `other_last` (both positive) are not far.
        """
        block = self.block
        if not self.has_far:
            return triton.cdiv(longest, block) * block, 0
        lead = triton.cdiv(last + block, block) * block
        return lead + triton.cdiv(other_last + block, block) * block + block, lead

    def table_gradients(
        self, grad_rel_key: Tensor | None, grad_rel_query: Tensor | None,
        by_query: Tensor, by_key: Tensor, sums: Tensor, num_sums: int,
        stored_by_query: tuple[int, int], stored_by_key: tuple[int, int], first_head: int, num_heads: int,
    ) -> None:  # fmt: skip
        """Writes some heads of the gradients with respect to rel_key and rel_query."""
        table = self.table
        if table is None:
            return
        partial = torch.empty(
            (2, TABLE_SPLITS, num_heads, table.num_rows, self.head_width), dtype=torch.float32, device=self.device
        )
        first_block, blocks = self.first_row // self.block, triton.cdiv(self.stop_row, self.block)
        shared = {
            "live_ptr": self.places["live_ptr"],
            "key_stop_ptr": self.places["key_stop_ptr"],
            "first_block": first_block,
            **{name: self.tables[name] for name in ("num_table_rows", "table_offset", "last_left", "last_right")},
            "scale": self.problem.scale,
            "first_head": first_head,
            "HEAD_WIDTH": self.head_width,
            "BLOCK_H": self.block_h,
            "BLOCK": self.block,
            "SPLITS": TABLE_SPLITS,
            "HAS_FAR": self.has_far,
            "HAS_MASK": self.constants["HAS_MASK"],
            "IS_PACKED": self.is_packed,
            **self.config("table_gradient").options,
        }
        queries = (
            self.query,
            by_query,
            self.map_q,
            "cu_q_ptr",
            self.num_queries,
            self.num_all_queries,
            stored_by_query,
        )
        keys = (self.key, by_key, self.map_k, "cu_k_ptr", self.num_keys, self.num_all_keys, stored_by_key)
        end_tiles = [triton.cdiv(x, END_ROWS) if self.has_far else 0 for x in (self.num_all_queries, self.num_all_keys)]
        ends = torch.empty((sum(end_tiles), num_heads, 2, self.head_width), dtype=torch.float32, device=self.device)
        for side, (rows, columns, tiles, sign, gradient) in enumerate(
            ((queries, keys, self.query_tiles, 1, grad_rel_key), (keys, queries, self.key_tiles, -1, grad_rel_query))
        ):
            if gradient is None:
                continue
            x, grad_scores, tile_map, cu_rows, num_rows, num_all_rows, (width, lead) = rows
            strides = dict(zip(("stride_xb", "stride_xt", "stride_xh"), _strides(x), strict=True))
            table_gradient_kernel[blocks - first_block, num_heads, TABLE_SPLITS](
                x, grad_scores, partial[side], map_ptr=tile_map,
                cu_rows_ptr=self.places[cu_rows], cu_columns_ptr=self.places[columns[3]], **strides,
                num_rows=num_rows, num_columns=columns[4], num_all_rows=num_all_rows, width=width, lead=lead,
                num_tiles=tiles,
                SIGN=sign, **shared,
            )  # fmt: skip
            if self.has_far:
                end_gradient_kernel[end_tiles[side], num_heads](
                    x, sums[side * num_heads * self.num_all_queries :], ends[side * end_tiles[0] :], **strides,
                    num_rows=num_rows, num_all_rows=num_all_rows, num_sums=num_sums, scale=self.problem.scale,
                    first_head=first_head, HEAD_WIDTH=self.head_width, BLOCK_H=self.block_h, BLOCK=END_ROWS,
                    num_warps=4,
                )  # fmt: skip
        num_slots = 2 * self.problem.positions.att_span
        fold_kernel[num_slots, num_heads, 2](
            partial, ends, grad_rel_key, grad_rel_query, table.row_spans,
            first_row=first_block * self.block, stop_row=min(blocks * self.block, table.num_rows),
            num_rows=table.num_rows, num_slots=num_slots, num_heads=num_heads, num_query_tiles=end_tiles[0],
            num_key_tiles=end_tiles[1], left_slot=table.left_slot, right_slot=table.right_slot, first_head=first_head,
            HEAD_WIDTH=self.head_width, BLOCK_H=self.block_h, BLOCK_U=FOLD_ROWS, SPLITS=TABLE_SPLITS,
            HAS_C2P=grad_rel_key is not None, HAS_P2C=grad_rel_query is not None, HAS_FAR=self.has_far, num_warps=1,
        )  # fmt: skip

    def _tile_map(self, cu_seqlens: Tensor, num_tiles: int) -> Tensor:
        tile_map = torch.empty((num_tiles, 2), dtype=torch.int32, device=self.device)
        if num_tiles and self.num_documents:
            tile_map_kernel[(num_tiles,)](cu_seqlens, tile_map, self.num_documents, BLOCK=self.block, num_warps=1)
        return tile_map

    def _set_tables(self, rel_key: Tensor | None, rel_query: Tensor | None) -> None:
        """Expands the tables, as far as these lengths reach; without any, all tiles are far."""
        base_2 = self.problem.scale * math.log2(math.e)
        self.prescale = 2.0 ** math.floor(math.log2(base_2)) if self.dtype == torch.float16 else 1.0
        self.table: DistanceTable | None = None
        self.key_table = self.query_table = self.query  # stands for no table: never read
        limits = {"num_table_rows": 0, "table_offset": 0, "last_left": -NO_LIMIT, "last_right": -NO_LIMIT}
        self.has_far = True
        if rel_key is not None or rel_query is not None:
            longest = max(self.longest_q, self.longest_k, 1)
            table = distance_table(self.problem.positions, longest, 2 * self.block, self.device)
            self.table = table
            limits = {name: getattr(table, name) for name in ("last_left", "last_right")}
            limits |= {"num_table_rows": table.num_rows, "table_offset": table.offset}
            reach = triton.cdiv(longest, self.block) * self.block
            # The nearest distance of the farthest tile.
            self.has_far = reach - 2 * self.block + 1 >= min(table.last_left, -table.last_right)
            self.first_row, self.stop_row = 0, table.num_rows  # far tiles read both ends
            if not self.has_far:
                self.first_row = max(0, table.offset - reach - self.block)
                self.stop_row = min(table.num_rows, table.offset + reach + self.block)
            expanded = torch.empty(
                (2, self.num_heads, table.num_rows, self.head_width), dtype=self.dtype, device=self.device
            )
            self.key_table, self.query_table = expanded.unbind()
            expand_kernel[triton.cdiv(self.stop_row - self.first_row, 64), self.num_heads](
                rel_key, rel_query, expanded, table.slots,
                *((0, 0, 0) if rel_key is None else rel_key.stride()),
                *((0, 0, 0) if rel_query is None else rel_query.stride()),
                first_row=self.first_row, stop_row=self.stop_row, num_rows=table.num_rows, num_heads=self.num_heads,
                PRESCALE=self.prescale, HEAD_WIDTH=self.head_width, BLOCK_H=self.block_h, BLOCK_U=64,
                HAS_C2P=rel_key is not None, HAS_P2C=rel_query is not None, num_warps=4,
            )  # fmt: skip
        self.tables: dict[str, Any] = limits | {"postscale": base_2 / self.prescale}


def _strides(x: Tensor) -> tuple[int, int, int]:
    """Of batch (0 for packed tokens), token and head."""
    batch, token, head, _ = (0, *x.stride()) if x.dim() == 3 else x.stride()
    return batch, token, head


def _rounds(num_heads: int, head_bytes: int) -> Iterator[tuple[int, int]]:
    """First head and number of heads of each round."""
    step = max(1, min(num_heads, WORKSPACE_BYTES // max(1, head_bytes)))
    for first_head in range(0, num_heads, step):
        yield first_head, min(step, num_heads - first_head)
