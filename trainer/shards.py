"""Windows of tokens out of memory-mapped shards.

What: knows every row of a split (trainer/window_plan.py), opens a shard when a row of it is first asked for, with its
checksum verified, and copies the tokens of many rows at once. It knows no order, no masks and no torch.
Used by: trainer/batch.py, plan.py. Tested by tests/trainer/test_shards.py.
"""

import itertools
from collections import OrderedDict
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disentangled.data_prep.shard_schema import OpenShard, Verification
from disentangled.trainer.dataset import Dataset
from disentangled.trainer.mixture import SourceSize
from disentangled.trainer.packing import Packing
from disentangled.trainer.window_plan import PlanKey, load_or_compute_plan

# Mean tokens of a piece from which copying piece by piece takes less time than one gather.
LONG_PIECES = 64


@dataclass(frozen=True)
class Pieces:
    """The runs of tokens that some rows are made of, in row order; each is one document or a part of one.

    row: which of the rows asked for. shard: which shard of the split. start: in the shard's tokens. length: tokens,
    special ones not counted. All [pieces] int64.
    """

    row: NDArray[np.int64]
    shard: NDArray[np.int64]
    start: NDArray[np.int64]
    length: NDArray[np.int64]


class WindowStore:
    """All windows of one split, in shard order: 0 .. num_windows - 1. Shards of a source stand together."""

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        sequence_length: int,
        minimum_piece_tokens: int,
        packing: Packing = "best_fit",
        verify: Verification = "checksum",
        num_processes: int = 1,
    ) -> None:
        self._dataset, self._verify = dataset, verify
        self._records = dataset.manifest.splits[split]
        self._open: OrderedDict[int, OpenShard] = OrderedDict()  # by when they were last read
        key = PlanKey(dataset.manifest.dataset_id, split, sequence_length, minimum_piece_tokens, packing)
        self._plan = load_or_compute_plan(dataset, key, num_processes)
        self._end_window = np.cumsum(self._plan.shard_windows)
        if self.num_windows == 0:
            raise ValueError(f"{dataset.name}: split {split!r} holds no tokens: build the dataset from more text")

    @property
    def num_windows(self) -> int:
        """Rows of one epoch."""
        return self._plan.num_windows

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, special ones not counted."""
        return int(self._plan.length.sum(dtype=np.int64))

    @property
    def num_pieces(self) -> int:
        """Documents and parts of documents in all rows."""
        return int(self._plan.length.size)

    def sources(self) -> list[tuple[SourceSize, NDArray[np.int64]]]:
        """Each source that has shards, in the store's order, and the rows of each of its shards."""
        manifest = self._dataset.manifest
        weights = dict(zip(manifest.sources, manifest.source_weights, strict=True))
        found, first = [], 0
        for name, group in groupby(self._records, key=lambda record: record.source):
            records = list(group)
            windows = self._plan.shard_windows[first : first + len(records)]
            num_tokens = sum(record.num_tokens for record in records)
            found.append((SourceSize(name, weights[name], num_tokens, int(windows.sum())), windows))
            first += len(records)
        return found

    def pieces(self, windows: NDArray[np.int64]) -> Pieces:
        """The pieces of these windows."""
        first = self._plan.first_piece[windows]
        counts = self._plan.first_piece[windows + 1] - first
        ends = np.cumsum(counts)
        place = np.arange(ends[-1] if ends.size else 0) + np.repeat(first - (ends - counts), counts)
        return Pieces(
            row=np.repeat(np.arange(windows.size), counts),
            shard=np.repeat(np.searchsorted(self._end_window, windows, side="right"), counts),
            start=self._plan.start[place].astype(np.int64),
            length=self._plan.length[place].astype(np.int64),
        )

    def copy_tokens(self, pieces: Pieces, out: NDArray[Any], places: NDArray[np.int64]) -> None:
        """Write each piece's tokens to out[places[i]], out[places[i] + 1], ...: one gather for each shard, or copies.

        Raises:
            ValueError: a shard is damaged, which is found when it is first opened; the line names it.
        """
        order = np.argsort(pieces.shard, kind="stable")
        shard, start, length, place = pieces.shard[order], pieces.start[order], pieces.length[order], places[order]
        if length.sum() > LONG_PIECES * length.size:
            for index, begin, size, target in zip(*(x.tolist() for x in (shard, start, length, place)), strict=True):
                out[target : target + size] = self._shard(index).tokens[begin : begin + size]
            return
        ends = np.cumsum(length)
        run = np.arange(ends[-1] if ends.size else 0)
        source, goal = (run + np.repeat(x - (ends - length), length) for x in (start, place))
        firsts = np.flatnonzero(np.diff(shard, prepend=-1))
        bounds = [*(ends - length)[firsts].tolist(), run.size]
        for index, (begin, stop) in zip(shard[firsts].tolist(), itertools.pairwise(bounds), strict=True):
            out[goal[begin:stop]] = self._shard(index).tokens[source[begin:stop]]

    def open_all(self) -> None:
        """Open and verify every shard now.

        Raises:
            ValueError: a shard is damaged; the line names it.
        """
        for index in range(len(self._records)):
            self._shard(index)

    def _shard(self, index: int) -> OpenShard:
        shard = self._open.pop(index, None)
        if shard is None:
            shard = self._dataset.open(self._records[index], self._verify)
        self._open[index] = shard
        if len(self._open) > self._dataset.max_open_shards:
            self._open.popitem(last=False)
        return shard
