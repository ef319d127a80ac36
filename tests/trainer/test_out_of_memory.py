import subprocess
import sys

import pytest
import torch

from disentangled.trainer.out_of_memory import describe_out_of_memory, is_out_of_memory


def test_torchs_cpu_allocator_is_recognised() -> None:
    program = """
import resource, torch
from disentangled.trainer.out_of_memory import is_out_of_memory
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
try:
    torch.empty(1 << 40)
except RuntimeError as error:
    print(is_out_of_memory(error), is_out_of_memory(RuntimeError("mat1 and mat2 shapes")))
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.stdout == "True False\n", finished


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")]
)
def test_advice_is_one_line_that_names_the_rank(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    assert is_out_of_memory(error)
    line = describe_out_of_memory(error)
    assert line.startswith("rank 3 on ") and "halve batch.micro_sequences" in line and "\n" not in line
