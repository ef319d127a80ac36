"""One call of the op as the kernels see it: pointers, strides, tile maps, expanded tables, scalars, constants.

Scales. The kernels' scores are in units of PRESCALE and become logits in base 2 inside the exponential, where
`postscale` is applied in float32. PRESCALE is 1 but for float16, whose position terms could overflow: there it is the
power of two in scale * log2(e), so multiplying queries and tables by it is exact.
Used by: launch.py. Tested by: tests/kernels/test_distance_tables.py, test_triton_attention.py.
Not here: argument checks (op.py); which kernels run on it (launch.py).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.counter_rng import drop_threshold, keep_scale
from disentangled.kernels.counter_rng_triton import key_words
from disentangled.kernels.disentangled_attention import tile_sizes
from disentangled.kernels.disentangled_attention.distance_tables import DistanceTable, distance_table, expand_kernel
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from disentangled.kernels.disentangled_attention.keep_words import WORD_QUERIES
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from disentangled.kernels.disentangled_attention.tiles import tile_map_kernel
from disentangled.kernels.grids import ceil_div, power_of_2_from

NO_LIMIT = 1 << 30


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


class Call:
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
        self.block_h = max(16, power_of_2_from(self.head_width))
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
            self.map_q = self.tile_map(cu_q, self.query_tiles, self.block)
            self.map_k = self.map_q if cu_k is cu_q else self.tile_map(cu_k, self.key_tiles, self.block)
        else:
            cu_q = cu_k = None
            self.num_documents = query.shape[0]
            self.longest_q, self.longest_k = self.num_queries, self.num_keys
            self.query_tiles = self.num_documents * ceil_div(self.num_queries, self.block)
            self.key_tiles = self.num_documents * ceil_div(self.num_keys, self.block)
        self.key_whole: Tensor | None = None  # keys before the first dead one, int32 [B]
        mask, key_stop = problem.key_padding_mask if self.num_keys else None, None
        if mask is not None:
            place = torch.arange(self.num_keys, dtype=torch.int32, device=self.device)
            self.key_whole = place.masked_fill(mask, self.num_keys).amin(dim=1)
            key_stop = (place + 1).masked_fill(~mask, 0).amax(dim=1)
            mask = mask.contiguous().view(torch.uint8)
        dropout = problem.dropout
        self.places: dict[str, Any] = {
            "live_ptr": mask,
            "key_stop_ptr": key_stop,
            "cu_q_ptr": cu_q,
            "cu_k_ptr": cu_k,
        }
        self.strides = {
            f"stride_{name}{axis}": stride
            for name, x in (("q", self.query), ("k", self.key), ("v", self.value))
            for axis, stride in zip("bth", strides_of(x), strict=True)
        }
        key_0, key_1 = key_words(0 if dropout is None else dropout.seed)
        self.draw: dict[str, Any] = {
            "sample_ptr": None if dropout is None else dropout.sample.to(self.device),
            "first_token_ptr": None if dropout is None else dropout.first_token.to(self.device),
            "key_0": key_0,
            "key_1": key_1,
            "stream": 0 if dropout is None else int(dropout.stream),
            "layer": 0 if dropout is None else dropout.layer,
            "threshold": 0 if dropout is None else drop_threshold(dropout.probability),
        }
        self.keep_scale = 1.0 if dropout is None else keep_scale(dropout.probability)
        self.grad_scale = problem.scale * self.keep_scale  # backward's dS has neither
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

    def config(self, kernel: str) -> tile_sizes.Config:
        """Of a kernel in this call."""
        capability = tile_sizes.capability_of(self.device)
        return tile_sizes.config(kernel, self.block_h, self.dtype, self.problem.dropout is not None, capability)

    @property
    def word_shape(self) -> tuple[int, int]:
        """Rows and width of one head's keep words (keep_words.py); 0 without dropout.

        One row more than there are, because a tile of queries reads those that it may have.
        """
        if self.problem.dropout is None:
            return 0, 0
        rows = ceil_div(self.num_queries, WORD_QUERIES) * self.num_documents
        if self.is_packed:
            rows = self.num_queries // WORD_QUERIES + self.num_documents
        return rows + 1, ceil_div(self.longest_k, self.block) * self.block

    def stored_rows(self, longest: int, last: int, other_last: int) -> tuple[int, int]:
        """Columns of a row of the stored dS, and how many of them come before the row's own tile.

        `longest` row; distances from the row back to `last` and on to `other_last` (both positive) are not far. One
        tile more than dS has, for the distances that its last tile of columns shares with nobody (shear.py).
        """
        block = self.block
        if not self.has_far:
            return ceil_div(longest, block) * block + block, 0
        lead = ceil_div(last + block, block) * block
        return lead + ceil_div(other_last + block, block) * block + 2 * block, lead

    def tile_map(self, cu_seqlens: Tensor, num_tiles: int, block: int) -> Tensor:
        """Document and number there of each tile of packed documents, int32 [num_tiles, 2]."""
        tile_map = torch.empty((num_tiles, 2), dtype=torch.int32, device=self.device)
        if num_tiles and self.num_documents:
            tile_map_kernel[(num_tiles,)](cu_seqlens, tile_map, self.num_documents, BLOCK=block, num_warps=1)
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
            reach = ceil_div(longest, self.block) * self.block
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
            expand_kernel[ceil_div(self.stop_row - self.first_row, 64), self.num_heads](
                rel_key, rel_query, expanded, table.slots,
                *((0, 0, 0) if rel_key is None else rel_key.stride()),
                *((0, 0, 0) if rel_query is None else rel_query.stride()),
                first_row=self.first_row, stop_row=self.stop_row, num_rows=table.num_rows, num_heads=self.num_heads,
                PRESCALE=self.prescale, HEAD_WIDTH=self.head_width, BLOCK_H=self.block_h, BLOCK_U=64,
                HAS_C2P=rel_key is not None, HAS_P2C=rel_query is not None, num_warps=4,
            )  # fmt: skip
        self.tables: dict[str, Any] = limits | {"postscale": base_2 / self.prescale}


def strides_of(x: Tensor) -> tuple[int, int, int]:
    """Of batch (0 for packed tokens), token and head."""
    batch, token, head, _ = (0, *x.stride()) if x.dim() == 3 else x.stride()
    return batch, token, head
