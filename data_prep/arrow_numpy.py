"""numpy arrays as Arrow arrays and back, over the same memory.

pyarrow's own conversions import pandas wherever it is installed, which takes a process 0.3 s and some 50 MB;
every rank of a build and every data worker would pay that.

Used by: write_shards.py, open_shard.py, trainer/window_plan.py. Tested by: tests/data_prep/test_arrow_numpy.py.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def to_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Numbers [n] as an Arrow array of their type without nulls; it shares their memory if they are contiguous."""
    buffer = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, buffer])


def to_numpy(array: pa.Array) -> npt.NDArray[Any]:
    """Numbers [n] of an Arrow array, read-only and over its memory; ValueError for an array with nulls."""
    if array.null_count:
        raise ValueError(f"an Arrow array of {array.type} has {array.null_count} nulls: numpy knows none, fill them")
    dtype = np.dtype(array.type.to_pandas_dtype())  # numpy's, whatever its name says
    buffer = array.buffers()[1]
    return np.frombuffer(buffer or b"", dtype, count=len(array), offset=array.offset * dtype.itemsize)
