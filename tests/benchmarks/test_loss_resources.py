"""What the compiler says of the fused loss's kernels; compiled ahead of time, in a process of its own.

Kernels are interpreted in the tests' own process, where nothing can be compiled.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT


def measured(path: Path, *arguments: str) -> list[dict[str, Any]]:
    """The rows of one run of the command, which must end well: its exit code is 1 where a kernel spills."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.loss_resources", "--jsonl", str(path), *arguments]
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{ended.stdout}{ended.stderr}"
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), ("--all",)], ids=["base model at sm_90", "all"])
def test_no_kernel_spills_or_needs_too_much_shared_memory(arguments: tuple[str, ...], tmp_path: Path) -> None:
    rows = measured(tmp_path / "rows.jsonl", *arguments)
    assert {row["kernel"] for row in rows} == {"statistics", "finish", "grad_logits"}
    assert not any(row["spill_bytes"] for row in rows) and all(row["fits"] for row in rows)
    assert {row["capability"] for row in rows} == ({80, 90, 100} if arguments else {90})
