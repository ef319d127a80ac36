"""Asks the driver for the shared memory of programs that declare some of their own (own_memory.py).

A program may have 48 KiB unasked. Triton asks for more where its own part alone is larger, and knows nothing of what
inline instructions declare; so when it loads one of our programs, we look at both parts, and ask where it did not
(triton.knobs.runtime.kernel_load_end_hook, CUDA driver API, cuFuncSetAttribute).
Used by: launch.py. Tested by: tests/kernels/test_shared_memory_limit.py. Not yet run on a GPU.
"""

import ctypes
import functools
import json
import re
from pathlib import Path
from typing import Any

import triton

UNASKED_BYTES = 48 << 10
RESERVED_BYTES = 1 << 10  # that the system has of each program's
MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
KERNELS = ("forward_kernel", "key_value_kernel", "query_kernel")
_DECLARED = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+own_memory\[(\d+)\];")


def declared_shared_bytes(ptx: str) -> int:
    """Shared memory that a program declares by inline instructions, besides Triton's."""
    return sum(map(int, _DECLARED.findall(ptx)))


def ask_for_shared_memory(_module: Any, function: int, name: str, files: dict[str, str], _hash: str) -> None:
    """What Triton calls when it has loaded a program: `function` is the driver's, `files` are paths by name.

    Raises:
        RuntimeError: the driver refuses.
    """
    if name not in KERNELS:
        return
    own = declared_shared_bytes(Path(files[f"{name}.ptx"]).read_text())
    tritons = json.loads(Path(files[f"{name}.json"]).read_text())["shared"]
    if not own or tritons > UNASKED_BYTES or own + tritons + RESERVED_BYTES <= UNASKED_BYTES:
        return
    result = _driver().cuFuncSetAttribute(
        ctypes.c_void_p(function), ctypes.c_int(MAX_DYNAMIC_SHARED_SIZE_BYTES), ctypes.c_int(tritons)
    )
    if result:
        raise RuntimeError(
            f"{name} needs {own} + {tritons} bytes of shared memory, which the CUDA driver refuses (error {result}):"
            " use implementation='torch'"
        )


def watch_loading() -> None:
    """From now on, whenever Triton loads a program."""
    triton.knobs.runtime.kernel_load_end_hook.add(ask_for_shared_memory)


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
