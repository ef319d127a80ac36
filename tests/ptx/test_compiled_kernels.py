"""Our kernels as compiled for GPUs, bfloat16 above all, run on the machine of machine.py; and that races show there."""

import os
import subprocess
import sys

import pytest

from tests.launching import ROOT
from tests.ptx.compiled_kernels import CASES

pytest.importorskip("triton")

# The kinds of call that training and fine-tuning make, on the GPUs that tile sizes are made for.
ALWAYS = {
    90: ("masked-dropout", "packed-dropout", "loss", "hidden-dropout", "residual-norm-mixed"),
    80: ("packed-dropout:float16", "loss"),
}
DTYPES = {
    "bfloat16": tuple(CASES),
    "float16": ("masked-dropout", "packed-dropout", "far", "width-128", "loss-odd", "hidden-dropout", "residual-norm"),
    "float32": ("masked-dropout", "packed", "far", "c2p", "width-32", "loss-odd", "residual-norm"),
}


def run_compiled(module: str, *arguments: str) -> str:
    """What the command prints; Triton compiles there, it does not interpret."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = (sys.executable, "-m", f"tests.ptx.{module}", *arguments)
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return finished.stdout


def test_the_machine_finds_races_and_what_is_read_ahead() -> None:
    said = dict(line.split(": ") for line in run_compiled("faulty_kernels").splitlines())
    assert said["one stage"] == said["with barriers"] == "1 right"
    for faulty in ("read ahead", "without barriers"):
        assert said[faulty].endswith("wrong") and int(said[faulty].split()[0]) > 1


@pytest.mark.parametrize("capability", sorted(ALWAYS))
def test_compiled_programs_are_no_worse_than_eager_whatever_the_order_of_warps(capability: int) -> None:
    run_compiled("compiled_kernels", str(capability), *ALWAYS[capability])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", sorted(ALWAYS))
def test_all_compiled_programs_are_no_worse_than_eager(capability: int, dtype: str) -> None:
    run_compiled("compiled_kernels", str(capability), *(f"{name}:{dtype}" for name in DTYPES[dtype]))
