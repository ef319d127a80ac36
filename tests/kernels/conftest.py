"""Every kernel test runs on one thread, with NaN in all memory that our code asks for and does not fill itself.

In Triton's interpreter no program reads or writes outside of its tensors, either (memory_guard.py).
"""

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

try:
    from tests.kernels.memory_guard import checked_accesses
except ModuleNotFoundError:  # no Triton for this machine: nothing to guard
    from contextlib import nullcontext as checked_accesses


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products gain nothing from threads, and lose much when several test processes share the cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and its kin return NaN (integers: 7) where the caller is a module of ours."""

    def poison(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def poisoned(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            if sys._getframe(1).f_globals["__name__"].startswith("disentangled."):
                tensor.fill_(torch.nan if tensor.is_floating_point() else 7)
            return tensor

        return poisoned

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def accesses_in_bounds() -> Iterator[None]:
    with checked_accesses():
        yield
