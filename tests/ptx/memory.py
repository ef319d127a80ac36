"""Global and shared memory of the machine: every access is looked up, so none goes astray unseen.

What: an address that lies in no tensor of the launch, or that is no multiple of what is accessed there, is an error, as
it is (or worse) on a GPU. What copies asynchronously (cp.async) reads its source either when it is issued or when it is
waited for, as chance has it: a program whose result depends on that is wrong.
Used by: machine.py, launch.py. Tested by: tests/ptx/test_machine.py.
"""

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Lanes = NDArray[Any]
Watch = Callable[[str, Lanes, int], None]
"""Told of each access of a warp: global or shared, the addresses of its lanes, the bytes of each."""

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
POISON = 0xFF  # a float of such bytes is no number


class AccessError(Exception):
    """A program read or wrote where it may not."""


class Memory:
    """Bytes from an address on, read and written by many lanes at once."""

    def __init__(self, start: int, content: NDArray[np.uint8], watch: Watch | None = None) -> None:
        self.start, self.stop = start, start + content.size
        self._watch = watch
        self._views = {
            size: content[: content.size // size * size].view(word) for size, word in WORDS.items() if start % size == 0
        }

    def load(self, addresses: Lanes, size: int, count: int) -> Lanes:
        """[lanes, count] words of `size` bytes."""
        return self._views[size][self._places(addresses, size, count)]

    def store(self, addresses: Lanes, words: Lanes) -> None:
        """words [lanes, count], of lane after lane where two of them meet."""
        size, count = words.dtype.itemsize, words.shape[1]
        self._views[size][self._places(addresses, size, count)] = words

    def _places(self, addresses: Lanes, size: int, count: int) -> Lanes:
        addresses = addresses.astype(np.int64)
        if self._watch:
            self._watch("shared", addresses, size * count)
        if addresses.min() < self.start or addresses.max() + size * count > self.stop:
            raise AccessError(
                f"{size * count} bytes at {addresses.min() - self.start} to {addresses.max() - self.start} of "
                f"{self.stop - self.start}"
            )
        if (addresses % (size * count)).any():
            raise AccessError(f"{size * count} bytes at an address that is no multiple of that")
        return ((addresses - self.start) // size)[:, None] + np.arange(count)


class GlobalMemory:
    """The tensors of a launch."""

    def __init__(self, tensors: Sequence[torch.Tensor], watch: Watch | None = None) -> None:
        self._watch = watch
        extents = sorted({extent_of(x) for x in tensors if x.numel()})
        joined: list[tuple[int, int]] = []
        for start, stop in extents:
            if joined and start < joined[-1][1]:  # views of one tensor
                start, stop = joined[-1][0], max(joined.pop()[1], stop)
            joined.append((start, stop))
        self._starts = [start for start, _ in joined]
        self._memories = [
            Memory(start, np.ctypeslib.as_array((ctypes.c_uint8 * (stop - start)).from_address(start)))
            for start, stop in joined
        ]

    def load(self, addresses: Lanes, size: int, count: int) -> Lanes:
        """As Memory's."""
        if self._watch:
            self._watch("global", addresses, size * count)
        groups = self._by_tensor(addresses)
        if len(groups) == 1:
            return groups[0][0].load(addresses, size, count)
        words = np.empty((addresses.size, count), WORDS[size])
        for memory, lanes in groups:
            words[lanes] = memory.load(addresses[lanes], size, count)
        return words

    def store(self, addresses: Lanes, words: Lanes) -> None:
        """As Memory's."""
        if self._watch:
            self._watch("global", addresses, words.dtype.itemsize * words.shape[1])
        for memory, lanes in self._by_tensor(addresses):
            memory.store(addresses[lanes], words[lanes])

    def _by_tensor(self, addresses: Lanes) -> list[tuple[Memory, Any]]:
        tensor = [bisect_right(self._starts, address) - 1 for address in addresses.tolist()]
        if min(tensor) < 0:
            raise AccessError("an address before all tensors")
        if min(tensor) == max(tensor):
            return [(self._memories[tensor[0]], slice(None))]
        return [(self._memories[number], np.array(tensor) == number) for number in sorted(set(tensor))]


def shared_memory(num_bytes: int, watch: Watch | None = None) -> Memory:
    """A block's shared memory, which begins at address 0."""
    return Memory(0, np.full(num_bytes, POISON, np.uint8), watch)


def extent_of(tensor: torch.Tensor) -> tuple[int, int]:
    """First address of a tensor, and the address after its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size() if tensor.numel() else 0
