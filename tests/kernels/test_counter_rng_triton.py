"""The Triton twin of the counter RNG, in Triton's interpreter, against the torch one."""

import os
import subprocess
import sys

import pytest


def test_triton_words_equal_torch_words_bit_for_bit() -> None:
    pytest.importorskip("triton")
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.philox_in_interpreter"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
