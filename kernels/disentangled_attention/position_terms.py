"""A position term of the scores, and its gradients, by matrix products and skewed views: implementation "torch".

With rows r and columns c (queries and keys for c2p, keys and queries for p2c) and a table E per distance, the term at
(r, c) is x_r . E[c - r + R - 1] for R rows. The product of x and E, a band in rows of width W, holds it at
r * (W - 1) + c + R - 1, which is a strided view. Rows are taken in blocks, because a block of r rows meets only
r + C - 1 of the R + C - 1 distances. Columns must be neighbours in memory: skewed reads and writes across the rows of
memory cost several times as much, so p2c is computed for transposed scores.

Shapes: scores [n, G, R, C], x [n, G, R, H], table [n, R + C - 1, H], all in the dtype of the sums.
Used by: eager.py. Tested by: tests/kernels/test_disentangled_attention.py, test_attention_gradients.py.
Not here: the buckets, which are in the table by now (eager.py); content terms.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

# n heads  G documents  R rows  C columns  H head width  W = rows of a block + C - 1, the distances that the block meets

# Rows of a block: an eighth of the columns, so that little of a band is computed in vain, but at least this many, so
# that products are not too small. README.md measures it.
BLOCK_ROWS = 32


class Bands:
    """Memory for the band of a block, which the next block reuses.

    There is one for each size of block (a term's last may be smaller). Backward asks for bands of zeros and only ever
    writes the part that the skewed view covers, so the rest stays zero from block to block.
    """

    def __init__(self, max_heads: int, like: Tensor, *, zero: bool) -> None:
        self._max_heads = max_heads
        self._new = like.new_zeros if zero else like.new_empty
        self._bands: dict[tuple[int, int], Tensor] = {}

    def block(self, num_heads: int, num_rows: int, width: int) -> Tensor:
        """[n, rows, W]."""
        if (num_rows, width) not in self._bands:
            self._bands[num_rows, width] = self._new((self._max_heads, num_rows, width))
        return self._bands[num_rows, width][:num_heads]


def position_terms(x: Tensor, table: Tensor, num_columns: int, bands: Bands) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows, each with x_r . table[c - r + R - 1] for its rows and all columns, [n, G, rows, C].

    x [n, G, R, H], table [n, R + C - 1, H]. The next block overwrites the last one's term.
    """
    num_heads, num_documents, num_rows, _ = x.shape
    for rows, window in _blocks(num_rows, num_columns):
        band = bands.block(num_heads, num_documents * (rows.stop - rows.start), window.stop - window.start)
        torch.bmm(x[:, :, rows].flatten(1, 2), table[:, window].mT, out=band)
        yield rows, _skew(band, num_documents, num_columns)


def add_position_gradients(
    grad_scores: Tensor, x: Tensor, table: Tensor, grad_x: Tensor, grad_table: Tensor, bands: Bands
) -> None:
    """The adjoint of position_terms, added to grad_x and grad_table; grad_scores [n, G, R, C]."""
    num_heads, num_documents, num_rows, num_columns = grad_scores.shape
    for rows, window in _blocks(num_rows, num_columns):
        band = bands.block(num_heads, num_documents * (rows.stop - rows.start), window.stop - window.start)
        _skew(band, num_documents, num_columns).copy_(grad_scores[:, :, rows])
        grad_table[:, window].baddbmm_(band.mT, x[:, :, rows].flatten(1, 2))
        grad_x[:, :, rows] += torch.bmm(band, table[:, window]).view_as(grad_x[:, :, rows])


def _blocks(num_rows: int, num_columns: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of rows, each with the rows of the table that it meets."""
    step = max(BLOCK_ROWS, num_columns // 8)
    for start in range(0, num_rows, step):
        stop = min(start + step, num_rows)
        yield slice(start, stop), slice(num_rows - stop, num_rows - start + num_columns - 1)


def _skew(band: Tensor, num_documents: int, num_columns: int) -> Tensor:
    """The view [n, G, rows, C] of band [n, G * rows, W] whose (r, c) is the band's (r, c - r + rows - 1)."""
    num_heads, all_rows, width = band.shape
    num_rows = all_rows // num_documents
    return band.as_strided(
        (num_heads, num_documents, num_rows, num_columns),
        (all_rows * width, num_rows * width, width - 1, 1),
        band.storage_offset() + num_rows - 1,
    )
