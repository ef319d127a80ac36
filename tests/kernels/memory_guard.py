"""Makes Triton's interpreter refuse what a GPU would do silently: loads and stores outside of a program's tensors.

A load past the end of a table gives some number, mostly finite, which a zero beside it mostly hides. Here it is an
error: every load and store of a program must lie, with all lanes that are not masked, in one of its tensor arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from triton.runtime import interpreter

from tests.ptx.memory import extent_of


class OutOfBoundsError(Exception):
    """A program read or wrote outside of its tensors."""


@contextmanager
def checked_accesses() -> Iterator[None]:
    """Within it, an access out of bounds raises triton's InterpreterError, which names OutOfBoundsError."""
    extents: list[tuple[int, int]] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    to_host, load, store = executor._init_args_hst, builder.create_masked_load, builder.create_masked_store

    def remember_extents(self: Any, arguments: Any, keywords: Any) -> Any:
        on_host = to_host(self, arguments, keywords)
        extents[:] = [extent_of(x) for x in (*on_host[0], *on_host[1].values()) if isinstance(x, torch.Tensor)]
        return on_host

    def check(pointers: Any, mask: Any, verb: str) -> None:
        addresses = pointers.data[mask.data.astype(bool)]
        if addresses.size == 0:
            return
        first, last = int(addresses.min()), int(addresses.max())
        stop = last + pointers.get_element_ty().primitive_bitwidth // 8
        if not any(start <= first and stop <= end for start, end in extents):
            nearest = min(extents, key=lambda extent: max(extent[0] - first, stop - extent[1]))
            before, after = max(nearest[0] - first, 0), max(stop - nearest[1], 0)
            raise OutOfBoundsError(f"{verb} {before} bytes before and {after} bytes after the nearest argument's")

    def checked_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "loads")
        return load(self, pointers, mask, *rest)

    def checked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        check(pointers, mask, "stores")
        return store(self, pointers, value, mask, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(executor, "_init_args_hst", remember_extents)
        patch.setattr(builder, "create_masked_load", checked_load)
        patch.setattr(builder, "create_masked_store", checked_store)
        yield
