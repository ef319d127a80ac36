"""How many bytes of tensors a piece of code holds at most.

What: on a CPU a dispatch mode sees every tensor that an operation gives and counts its storage until that is freed;
buffers inside a single operation are not seen. A GPU's allocator keeps the numbers itself.
Used by: trainer/activation_trace.py. Tested by tests/trainer/test_memory_plan.py.
"""

import types
import weakref
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class AllocatedBytes(TorchDispatchMode):
    """Counts inside a `with` block, in which everything that matters must be made: the mode knows nothing older."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device
        self._sizes: dict[int, int] = {}
        self._now = self._most = self._marked = 0

    def __enter__(self) -> Self:
        if self._device.type != "cuda":
            super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._device.type != "cuda":
            super().__exit__(kind, error, trace)

    def mark(self) -> None:
        """Count from here: what is there now is not part of the peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._marked = torch.cuda.memory_allocated(self._device)
        else:
            self._marked = self._most = self._now

    def peak(self) -> int:
        """The most bytes since the mark, or since the block began."""
        most = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else self._most
        return most - self._marked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it gives."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.device.type == self._device.type:
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._free, key)
        self._now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self._most = max(self._most, self._now)

    def _free(self, key: int) -> None:
        self._now -= self._sizes.pop(key)
