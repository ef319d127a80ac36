"""The average cosine similarity of all pairs of rows of an embedding table, exact.

What: arXiv 2111.09543 section 3.3, table 1, tells ways of sharing embeddings apart by it. For unit vectors u_i the sum
of u_i . u_j over all pairs is (|sum of u_i|^2 - n) / 2, so n rows cost one pass over them and no pair is sampled. A row
of zeros has no direction: it is left out of the average and counted.
Used by: trainer/embedding_cosine.py. Tested by tests/model/test_average_cosine.py.
Not here: which rows are compared, and where tables come from (trainer/embedding_cosine.py).
"""

# V rows of a table  D hidden width  n chosen rows

from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ROWS = 1 << 13  # in fp64 at a time: 100 MB of 1,536 numbers a row


@dataclass(frozen=True)
class AverageCosine:
    """What a table gave.

    Attributes:
        mean: over all pairs of rows that have a direction, in [-1, 1]; None where fewer than two have one.
        num_zero_rows: of the chosen ones, left out.
    """

    mean: float | None
    num_zero_rows: int


def average_cosine(table: Tensor, rows: Tensor) -> AverageCosine:
    """Mean of u_i . u_j over all pairs i < j of the chosen rows, u_i = row i / |row i|.

    Args:
        table: [V, D], any float dtype.
        rows: int64 [n], no row twice.

    Numerics: lengths, unit vectors and sums are fp64, and |u_i|^2 as it was rounded is what is taken off.

    Raises:
        ValueError: a chosen row holds NaN or infinity.
    """
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    own = torch.zeros((), dtype=torch.float64)
    num_rows = 0
    for chunk in rows.split(CHUNK_ROWS):
        values = table[chunk].double()
        lengths = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        broken = int((~torch.isfinite(lengths)).sum())
        if broken:
            raise ValueError(f"{broken} of {len(chunk)} rows hold NaN or infinity: take weights from before that")
        has_direction = lengths.squeeze(1) > 0
        units = values[has_direction] / lengths[has_direction]
        total += units.sum(0)
        own += units.square().sum()
        num_rows += len(units)
    mean = None if num_rows < 2 else float((total.square().sum() - own) / (num_rows * (num_rows - 1)))
    return AverageCosine(mean, len(rows) - num_rows)
