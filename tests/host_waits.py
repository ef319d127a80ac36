"""Finds what makes the host wait for a device: operations that read a value, or whose result's size is a value.

They are seen on a CPU, by name, so no GPU is needed; `torch.cuda.set_sync_debug_mode` would say the same of a GPU.
Used by: tests/model/test_no_host_waits.py, tests/integration/zero_stages.py.
"""

import os
import sys
from types import FrameType

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}


class HostWaits(TorchDispatchMode):
    """Collects the operations that wait, and who asked for them; not what a function in `but_within` asked for."""

    def __init__(self, *but_within: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._but_within = set(but_within)

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name.removeprefix("aten::")
        is_indexed_by_bool = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for indices in arguments
            if isinstance(indices, list | tuple)
            for x in indices
        )
        if name in WAITING or is_indexed_by_bool:
            asking = callers(sys._getframe(1))
            if not self._but_within.intersection(asking):
                self.found.add(f"{name}: {' < '.join(asking[:4])}")
        return function(*arguments, **(options or {}))


def callers(frame: FrameType | None) -> list[str]:
    """Names of the functions that are being run, the innermost first; torch's own are left out."""
    names = []
    while frame is not None:
        if f"{os.sep}torch{os.sep}" not in frame.f_code.co_filename:
            names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names
