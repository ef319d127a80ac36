"""Windows of tokens out of memory-mapped shards.

What: opens every shard of a split, plans its rows for the run's sequence length, and hands out the pieces of window w.
It knows no order, no masks and no torch.
Used by: trainer/batch.py. Tested by tests/trainer/test_shards.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disentangled.data_prep.shard_schema import Manifest, Verification, open_shard
from disentangled.trainer.packing import plan_windows


class WindowStore:
    """All windows of one split, in shard order: 0 .. num_windows - 1."""

    def __init__(
        self,
        directory: str | Path,
        manifest: Manifest,
        split: str,
        sequence_length: int,
        minimum_piece_tokens: int,
        verify: Verification = "checksum",
    ) -> None:
        self._shards = [open_shard(directory, record, verify) for record in manifest.splits[split]]
        self._plans = [plan_windows(shard.offsets, sequence_length, minimum_piece_tokens) for shard in self._shards]
        self._first_window = np.cumsum([0] + [plan.num_windows for plan in self._plans])
        if self.num_windows == 0:
            raise ValueError(f"{directory}: split {split!r} holds no tokens: build the dataset from more text")

    @property
    def num_windows(self) -> int:
        """Rows of one epoch."""
        return int(self._first_window[-1])

    def pieces(self, window: int) -> Iterator[NDArray[Any]]:
        """The token runs of a window, each without special ids; views into the mapped file."""
        index = int(np.searchsorted(self._first_window, window, side="right")) - 1
        plan, shard = self._plans[index], self._shards[index]
        local = window - int(self._first_window[index])
        for piece in range(int(plan.first_piece[local]), int(plan.first_piece[local + 1])):
            start = int(plan.start[piece])
            yield shard.tokens[start : start + int(plan.length[piece])]
