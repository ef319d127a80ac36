"""How often each source is drawn, and which of its draws a global sample is.

What: a source's share of a run is proportional to weight * tokens^alpha (arXiv 1911.02116 section 3.1: alpha 0.3 for
CC100), no source being repeated more than a cap allows. Shares become slots of a schedule of 65,536 that repeats
for ever; slots of a source are evenly spaced, so any stretch of samples has the right mixture. Stateless: the source
of sample g, and how many samples that source has given before, follow from g alone.
Used by: trainer/order.py, plan.py. Tested by: tests/trainer/test_mixture.py.
Not here: the order within a source (order.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_SLOTS = 1 << 16


@dataclass(frozen=True)
class SourceSize:
    """One source of a split: its weight as in the manifest, its tokens, its rows at the run's sequence length."""

    name: str
    weight: float
    num_tokens: int
    num_windows: int


def mixture_shares(
    sources: Sequence[SourceSize], alpha: float, max_epochs: float = 0.0, num_samples: int = 0
) -> NDArray[np.float64]:
    """Each source's share of `num_samples` samples [sources], summing to 1.

    Args:
        alpha: 1 draws in proportion to tokens, 0 draws all sources alike.
        max_epochs: no source is seen more often; what it loses goes to the others in proportion. 0: no cap.

    Raises:
        ValueError: no source has a weight and rows, or the cap leaves too few samples for the run.
    """
    weight = np.array([source.weight if source.num_windows else 0.0 for source in sources])
    if not weight.sum() > 0:
        raise ValueError("no source of this split has both rows and a weight above 0: mend the weights or add text")
    tokens = np.array([float(source.num_tokens) for source in sources])
    shares = weight * np.power(tokens, alpha, where=tokens > 0, out=np.zeros_like(tokens))
    shares /= shares.sum()
    if not max_epochs:
        return shares
    most = np.array([max_epochs * source.num_windows for source in sources]) / num_samples
    if most[weight > 0].sum() < 1.0:
        allowed = int(sum(max_epochs * source.num_windows for source in sources if source.weight > 0))
        raise ValueError(
            f"data.max_epochs {max_epochs:g} allows {allowed:,} rows in all, this run needs {num_samples:,}: raise it, "
            "or lower schedule.total_steps or batch.global_sequences"
        )
    is_full = np.zeros(len(sources), dtype=bool)
    while np.any(over := (shares > most) & ~is_full):
        is_full |= over
        shares[is_full] = most[is_full]
        rest = ~is_full & (weight > 0)
        if not rest.any():
            break
        shares[rest] *= (1.0 - most[is_full].sum()) / shares[rest].sum()
    return shares


class MixtureSchedule:
    """The repeating schedule of sources. slots[j] of its NUM_SLOTS samples are of source j."""

    def __init__(self, shares: NDArray[np.float64]) -> None:
        self.slots = _whole_slots(shares)
        source = np.repeat(np.arange(shares.size), self.slots)
        rank = np.arange(NUM_SLOTS) - np.repeat(np.cumsum(self.slots) - self.slots, self.slots)
        order = np.lexsort((source, (rank + 0.5) / self.slots[source]))
        self._source, self._rank = source[order], rank[order]

    def locate(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each global sample, and how many samples of that source come before it."""
        rounds, slot = np.divmod(samples, NUM_SLOTS)
        source = self._source[slot]
        return source, rounds * self.slots[source] + self._rank[slot]


def _whole_slots(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Shares in whole slots by largest remainder; a source that is to be drawn at all has one slot at least."""
    exact = shares * NUM_SLOTS
    slots = np.where(shares > 0, np.maximum(1, np.floor(exact)), 0).astype(np.int64)
    missing = NUM_SLOTS - int(slots.sum())
    if missing >= 0:
        slots[np.argsort(slots - exact, kind="stable")[:missing]] += 1
    while missing < 0:  # many sources of less than a slot: the largest give way
        slots[np.argmax(slots)] -= 1
        missing += 1
    return slots


def describe_mixture(sources: Sequence[SourceSize], shares: NDArray[np.float64], num_samples: int) -> list[str]:
    """A line for each source: rows, share, and how often the run goes through it."""
    width = max(len("source"), *(len(source.name) for source in sources))
    lines = [f"{'source':{width}} {'tokens':>16} {'rows':>13} {'share':>8} {'epochs':>9}"]
    for source, share in zip(sources, shares.tolist(), strict=True):
        epochs = share * num_samples / source.num_windows if source.num_windows else 0.0
        lines.append(
            f"{source.name:{width}} {source.num_tokens:16,} {source.num_windows:13,} {share:8.2%} {epochs:9.2f}"
        )
    return lines
