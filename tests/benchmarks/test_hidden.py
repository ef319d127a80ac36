"""What the compiler says of the kernels; in a process of its own, as tests interpret kernels in theirs."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.launching import ROOT


@pytest.mark.slow
def test_kernels_do_not_spill() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.hidden", "--resources", "--capabilities", "80", "90", "100"]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert {row["capability"] for row in rows} == {80, 90, 100} and len(rows) == 72
    assert not any(row["spill_bytes"] for row in rows)


def test_every_variant_runs_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from benchmarks import hidden

    for name, value in {"DEVICE": "cpu", "DTYPE": torch.float16, "ROWS": 6}.items():  # bfloat16 is not interpreted
        monkeypatch.setattr(hidden, name, value)
    monkeypatch.setattr(hidden, "milliseconds", lambda call, device: call() and (1.0, 1.0, 1.0))
    monkeypatch.setattr(torch, "compile", lambda function: function)
    for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    cases = [hidden.dropout_case(40), hidden.norm_case(40, torch.float16), hidden.norm_case(40, torch.float32)]
    rows = [row for case in cases for row in hidden.times(case)]
    assert [row["variant"] for row in rows[:3]] == ["triton", "torch", "torch.nn.functional"]
    assert len(rows) == 3 + 2 * 4 and rows[-1]["dtypes"] == ["float16", "float32", "float32", "float32"]
