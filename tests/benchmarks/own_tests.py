"""Stands in for the tests that a benchmark runs first; they are in this suite."""

import sys

import pytest

from benchmarks import tests_first


def end_own_tests(patch: pytest.MonkeyPatch, code: int) -> None:
    """They end at once with that exit code."""
    patch.setattr(tests_first, "pytest_command", lambda *selection: [sys.executable, "-c", f"raise SystemExit({code})"])
