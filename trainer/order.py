"""The order of samples: a pure function of the seed and the global sample index.

What: a global sample is a draw of a source (trainer/mixture.py); that draw is a row of the source, by a permutation of
all its rows that is another one in each epoch. No index array exists, and the only state of the data is one integer,
consumed_samples. With `block_shards` the order is of two levels, for stores where opening a shard is dear: the shards
in a random order, and rows in a random order within each group of so many shards.
Ranks slice a step's samples as g = consumed + accumulation * (ranks * micro) + rank * micro + k: any number of ranks
and any accumulation sees the same set of samples in a step.
Used by: trainer/batch.py, plan.py. Tested by: tests/trainer/test_order.py.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from disentangled.trainer.hashing import hash_words
from disentangled.trainer.mixture import MixtureSchedule, SourceSize, mixture_shares
from disentangled.trainer.permutation import permute

# Samples whose rows are computed together and kept: a call costs as much as some 500 samples, whatever their number.
GROUP_SAMPLES = 1024
# what a hash is for
ROWS, SHARDS, BLOCKS = 0, 1, 2


class SampleOrder:
    """Which row of a store each global sample is.

    Args:
        shard_windows: for each source, the rows of each of its shards, in the store's order.
        shares: for each source, its share of the samples; None where all rows of all sources are alike.
        block_shards: shards whose rows are shuffled together; 0 shuffles all rows of a source.
    """

    def __init__(
        self,
        shard_windows: Sequence[NDArray[np.int64]],
        shares: NDArray[np.float64] | None,
        seed: int,
        block_shards: int = 0,
    ) -> None:
        if shares is None:
            shard_windows, shares = [np.concatenate(shard_windows)], np.ones(1)
        self._shard_windows = shard_windows
        self._num_windows = np.array([shards.sum() for shards in shard_windows], dtype=np.int64)
        self._first_window = np.cumsum(self._num_windows) - self._num_windows
        if np.any(self._num_windows[shares > 0] < 1) or not self._num_windows.any():
            raise ValueError("the shards hold no window: use more text or a shorter data.sequence_length")
        self._schedule = MixtureSchedule(shares)
        self._seed = seed
        self._block_shards = block_shards
        self._block_order = lru_cache(maxsize=4 * len(shard_windows))(self._compute_block_order)
        self._group_windows = lru_cache(maxsize=4)(self._compute_group_windows)

    def windows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each global sample: every row of a source once per epoch of that source."""
        groups, places = np.divmod(samples, GROUP_SAMPLES)
        if samples.size and groups[0] == groups[-1] == groups.max():
            return self._group_windows(int(groups[0]))[places]
        return self.compute_windows(samples)

    def _compute_group_windows(self, group: int) -> NDArray[np.int64]:
        return self.compute_windows(np.arange(group * GROUP_SAMPLES, (group + 1) * GROUP_SAMPLES))

    def compute_windows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same, sample by sample."""
        source, draw = self._schedule.locate(samples)
        epoch, place = np.divmod(draw, self._num_windows[source])
        if not self._block_shards:
            keys = hash_words(self._seed, ROWS, source, epoch)
            return self._first_window[source] + permute(place, self._num_windows[source], keys)
        windows = np.empty_like(samples)
        for one_source, one_epoch in np.unique(np.stack([source, epoch], axis=1), axis=0).tolist():
            chosen = (source == one_source) & (epoch == one_epoch)
            windows[chosen] = self._windows_in_blocks(one_source, one_epoch, place[chosen])
        return windows

    def _windows_in_blocks(self, source: int, epoch: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        shards, starts, block_starts = self._block_order(source, epoch)
        block = np.searchsorted(block_starts, places, side="right") - 1
        sizes = np.diff(block_starts)[block]
        keys = hash_words(self._seed, BLOCKS, source, epoch, block)
        places = block_starts[block] + permute(places - block_starts[block], sizes, keys)
        slot = np.searchsorted(starts, places, side="right") - 1
        counts = self._shard_windows[source]
        first_of_shard = np.cumsum(counts) - counts
        return self._first_window[source] + first_of_shard[shards[slot]] + places - starts[slot]

    def _compute_block_order(
        self, source: int, epoch: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Shards in this epoch's order; the place where each begins; where each block begins, and the last one ends."""
        shards = np.flatnonzero(self._shard_windows[source])
        keys = hash_words(self._seed, SHARDS, source, epoch)
        shards = shards[permute(np.arange(shards.size), np.full(shards.size, shards.size), keys.repeat(shards.size))]
        ends = np.cumsum(self._shard_windows[source][shards])
        starts = ends - self._shard_windows[source][shards]
        return shards, starts, np.append(starts[:: self._block_shards], ends[-1])


def order_of_sources(
    sources: Sequence[tuple[SourceSize, NDArray[np.int64]]],
    alpha: float,
    max_epochs: float,
    num_samples: int,
    seed: int,
    block_shards: int = 0,
) -> SampleOrder:
    """The order of a store's sources over a run of num_samples samples.

    Where nothing tells the sources apart (one source, or alpha 1, equal weights and no cap) all rows are one source,
    and each is seen once before any is seen again.

    Raises:
        ValueError: see trainer/mixture.py.
    """
    sizes, shard_windows = zip(*sources, strict=True)
    is_mixture = len({size.weight for size in sizes}) > 1 or alpha != 1.0 or bool(max_epochs)
    shares = mixture_shares(sizes, alpha, max_epochs, num_samples) if is_mixture else None
    return SampleOrder(shard_windows, shares, seed, block_shards)


def rank_slice(consumed: int, accumulation: int, rank: int, world_size: int, micro_sequences: int) -> NDArray[np.int64]:
    """Global sample indices of one micro-batch: number `accumulation` of the step that starts at `consumed`."""
    start = consumed + (accumulation * world_size + rank) * micro_sequences
    return np.arange(start, start + micro_sequences, dtype=np.int64)
