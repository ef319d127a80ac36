"""Relative distance to row of the relative-embedding tables, with DeBERTa's logarithmic buckets.

The slot of distance d = i - j (query i, key j) is clamp(bucket(d) + k, 0, 2k - 1), a monotone map onto the 2k rows.
Without buckets (position_buckets <= 0) k is max_relative_positions and bucket(d) = d, as in arXiv:2006.03654, section
3.1. With them k is position_buckets, bucket(d) = d up to half of k, and beyond it bucket(d) grows with log |d|; this
is in the code of DeBERTa V2 and V3, not in their papers.

The two original implementations differ for |d| >= max_relative_positions: "huggingface" buckets the distance as it
is, "microsoft" first clamps it to +-(max_relative_positions - 1). For an even k that only shows at d <=
-max_relative_positions, slot 0 against slot 1. Without buckets they agree.

|d| = max_relative_positions - 1 lies exactly on a boundary of the buckets, where one unit in the last place of the
logarithm flips the slot. So the table is built once, on the CPU, in the float32 that both originals use, and
everything else (every kernel too) reads it: nothing computes a bucket again.

Used by: reference.py, eager.py, op.py. Tested by: tests/kernels/test_log_bucket.py, against transformers.
Not here: absolute positions; the tables themselves.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

BUCKET_RULES = ("huggingface", "microsoft")


@dataclass(frozen=True)
class Positions:
    """How a distance becomes a row of the tables."""

    position_buckets: int
    max_relative_positions: int
    bucket_rule: str = "huggingface"

    def __post_init__(self) -> None:
        buckets, longest = self.position_buckets, self.max_relative_positions
        if self.bucket_rule not in BUCKET_RULES:
            raise ValueError(f"bucket_rule {self.bucket_rule!r} is unknown: give one of {', '.join(BUCKET_RULES)}")
        if longest < 1:
            raise ValueError(f"max_relative_positions is {longest}: give at least 1")
        if buckets == 1 or 0 < buckets // 2 > longest - 2:
            raise ValueError(
                f"position_buckets {buckets} with max_relative_positions {longest} leaves no room for logarithmic "
                "buckets: give at least 2 buckets and max_relative_positions >= position_buckets // 2 + 2"
            )

    @property
    def att_span(self) -> int:
        """k, half the number of rows of a table."""
        return self.position_buckets if self.position_buckets > 0 else self.max_relative_positions

    def slots(self, num_queries: int, num_keys: int, device: torch.device | str = "cpu") -> Tensor:
        """Slots of the distances -(num_keys - 1) .. num_queries - 1, ascending: int64 [num_queries + num_keys - 1].

        The result is a view of a cached table: read it, never write to it.
        """
        longest = max(num_queries, num_keys, 1)
        reach = 1 << (longest - 1).bit_length()  # a power of two, so that all lengths share few tables
        table = _slot_table(reach, self, str(device))
        return table[reach - (num_keys - 1) : reach + num_queries]


@functools.lru_cache(maxsize=64)
def _slot_table(reach: int, positions: Positions, device: str) -> Tensor:
    """Slots of the distances -reach .. reach."""
    span, last = positions.att_span, positions.max_relative_positions - 1
    with torch.inference_mode(False):  # or a table first asked for in evaluation could not be used in training
        buckets = torch.arange(-reach, reach + 1, device="cpu")
        if positions.position_buckets > 0:
            if positions.bucket_rule == "microsoft":
                buckets = buckets.clamp(-last, last)
            buckets = _log_bucket(buckets, positions.position_buckets // 2, last)
        return (buckets + span).clamp(0, 2 * span - 1).to(device)


def _log_bucket(distances: Tensor, linear_limit: int, last_distance: int) -> Tensor:
    """Signed bucket of each distance, unclamped, int64: the distance itself up to linear_limit, logarithmic beyond."""
    magnitude = distances.abs()
    growth = torch.log(magnitude.clamp(min=linear_limit) / linear_limit)
    growth_at_last = torch.log(torch.tensor(last_distance / linear_limit, device="cpu"))
    logarithmic = torch.ceil(growth / growth_at_last * (linear_limit - 1)).to(torch.int64) + linear_limit
    return torch.where(magnitude <= linear_limit, distances, logarithmic * distances.sign())
