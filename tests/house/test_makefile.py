"""The Makefile's promises that need no installation to be seen: help, one-line errors, a set-up that is not done twice.

Runs a copy of the Makefile in an empty folder whose path has a space in it. Not here: the installation itself, which
the whole suite runs on.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ("help", "install", "demo", "test", "test-slow", "lint", "clean")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A clone as far as the set-up can see, nothing installed."""
    clone = tmp_path / "a clone"
    clone.mkdir()
    for name in ("Makefile", "constraints.txt", "setup.py"):
        shutil.copy2(ROOT / name, clone)
    return clone


def run_make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(["make", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=30)


def write_python(folder: Path, version: str, refuses: str) -> Path:
    """A stand-in for an interpreter: says a version, and fails at every program that contains a word."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in --version) echo "Python {version}";; *{refuses}*) exit 1;; *) exit 0;; esac\n'
    )
    program.chmod(0o755)
    return program


def test_make_without_arguments_lists_every_target(folder: Path) -> None:
    done = run_make(folder)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(TARGETS)


@pytest.mark.parametrize(
    ("version", "refuses", "complaint"),
    [("3.9.2", "version_info", "Python 3.9.2, 3.11 or newer is needed"), ("3.11.2", "ensurepip", "python3-venv")],
)
def test_unfit_python_is_one_line_that_names_the_remedy(
    folder: Path, version: str, refuses: str, complaint: str
) -> None:
    python = write_python(folder, version, refuses)
    done = run_make(folder, "install", f"PYTHON={python}")
    assert done.returncode != 0
    line, makes_own = done.stderr.splitlines()
    assert complaint in line
    assert "make install PYTHON=" in line
    assert makes_own.startswith("make: ***")
    assert not (folder / ".venv").exists()


def test_absent_python_is_one_line_that_names_the_remedy(folder: Path) -> None:
    done = run_make(folder, "install", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python was not found" in done.stderr.splitlines()[0]
    assert "make install PYTHON=" in done.stderr.splitlines()[0]


def test_second_run_skips_the_set_up_until_its_inputs_change(folder: Path) -> None:
    (folder / ".venv").mkdir()
    (folder / ".venv/installed").touch()
    assert "pip" not in run_make(folder, "--dry-run", "test").stdout
    for name in ("constraints.txt", "setup.py"):
        later = (folder / ".venv/installed").stat().st_mtime + 10
        os.utime(folder / name, (later, later))
        assert "pip" in run_make(folder, "--dry-run", "test").stdout, f"a new {name} must lead to a new set-up"
        os.utime(folder / name, (0, 0))


def test_demo_passes_the_users_text_on(folder: Path) -> None:
    (folder / ".venv").mkdir()
    (folder / ".venv/installed").touch()
    assert '--text "my book.txt"' in run_make(folder, "--dry-run", "demo", "TEXT=my book.txt").stdout
    assert "--text" not in run_make(folder, "--dry-run", "demo").stdout
