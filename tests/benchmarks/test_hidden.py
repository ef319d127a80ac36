"""What the compiler says of the kernels; in a process of its own, as tests interpret kernels in theirs."""

import json
import os
import subprocess
import sys

import pytest

from tests.launching import ROOT


@pytest.mark.slow
def test_kernels_do_not_spill() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.hidden", "--resources", "--capabilities", "80", "90", "100"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {row["capability"] for row in rows} == {80, 90, 100} and len(rows) == 54
    assert not any(row["spill_bytes"] for row in rows)
