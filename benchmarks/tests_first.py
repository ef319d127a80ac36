"""The tests that a benchmark runs before it times anything: red ones, no numbers.

On a GPU in several processes, since most of their time there is Triton's compiler, which uses one core.
Tested by: tests/benchmarks/test_tests_first.py.
"""

import os
import shlex
import subprocess
import sys

import torch

MOST_PROCESSES = 8  # each holds its own tensors on the one GPU


def pytest_command(*selection: str) -> list[str]:
    """What runs these tests."""
    processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    several = ("--numprocesses", str(processes)) if torch.cuda.is_available() else ()
    return [sys.executable, "-m", "pytest", "-q", *several, *selection]


def own_tests_pass(*selection: str, seconds: float | None = None) -> bool:
    """Run these tests as far as the first red one, and name it; seconds: taking longer is red, too."""
    command = pytest_command("-x", *selection)
    try:
        passed = subprocess.run(command, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        passed = False
    if not passed:
        print(f"red tests, so no numbers: {shlex.join(command)}")
    return passed
