"""Asks the driver for the shared memory of programs that declare some of their own (own_memory.py).

A program may have 48 KiB unasked. Triton asks for more where its own part alone is larger, and knows nothing of what
inline instructions declare; so where it has not asked for one of our programs, we do when it has loaded it
(triton.knobs.runtime.kernel_load_end_hook; CUDA driver API, cuFuncSetAttribute). Asking for what it may have anyway
does no harm.
Used by: launch.py. Tested by: tests/kernels/test_shared_memory_limit.py. Not yet run on a GPU.
"""

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import triton

UNASKED_BYTES = 48 << 10
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
KERNELS = ("forward_kernel", "key_value_kernel", "query_kernel")


def ask_for_shared_memory(_module: Any, function: int, name: str, files: dict[str, str], _hash: str) -> None:
    """What Triton calls when it has loaded a program: `function` is the driver's, `files` are paths by name.

    Raises:
        RuntimeError: the driver refuses.
    """
    if name not in KERNELS:
        return
    size = json.loads(Path(files[f"{name}.json"]).read_text())["shared"]
    if size > UNASKED_BYTES:
        return
    result = _driver().cuFuncSetAttribute(
        ctypes.c_void_p(function), ctypes.c_int(MAX_DYNAMIC_SHARED_SIZE_BYTES), ctypes.c_int(size)
    )
    if result:
        raise RuntimeError(
            f"{name} needs {size} bytes of shared memory besides its own, which the CUDA driver refuses (error"
            f" {result}): use implementation='torch'"
        )


def watch_loading() -> None:
    """From now on, whenever Triton loads a program."""
    triton.knobs.runtime.kernel_load_end_hook.add(ask_for_shared_memory)


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
