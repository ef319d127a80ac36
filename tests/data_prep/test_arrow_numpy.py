"""Arrays over the same memory, both ways, and no pandas."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from disentangled.data_prep.arrow_numpy import to_arrow, to_numpy
from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.launching import ROOT

DTYPES = (np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_both_ways_share_memory(dtype: Any) -> None:
    values = np.arange(7, dtype=dtype)
    array = to_arrow(values)
    assert array.equals(pa.array(values))
    assert np.shares_memory(to_numpy(array), values)
    np.testing.assert_array_equal(to_numpy(array.slice(2, 3)), values[2:5])


@pytest.mark.parametrize("array", [pa.array([], pa.int64()), to_arrow(np.zeros(0, np.uint16))])
def test_nothing_is_an_empty_array(array: pa.Array) -> None:
    assert to_numpy(array).shape == (0,)


def test_every_second_value_is_copied() -> None:
    assert to_arrow(np.arange(6)[::2]).to_pylist() == [0, 2, 4]


def test_nulls_are_refused() -> None:
    with pytest.raises(ValueError, match="1 nulls: numpy knows none"):
        to_numpy(pa.array([1, None]))


def test_a_build_and_its_reading_import_no_pandas(model_path: Path, tmp_path: Path) -> None:
    text = write_txt(tmp_path / "corpus.txt", make_documents())
    code = f"""
import sys
from disentangled.data_prep import build_corpus, verify
build_corpus.main(["--input", {str(text)!r}, "--output", "shards", "--tokenizer", {str(model_path)!r}])
assert verify.main(["shards", "--full"]) == 0
assert "pandas" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
