"""Hugging Face's package `kernels` keeps working in our root, where our folder of that name is found first.

Why: transformers imports that package when it is installed in a version it accepts; a regular package of ours by that
name would break `import transformers` (docs/decisions/0001-import-root.md). Each case is a process of its own,
started in the root as a user would. Not here: transformers and our model against each other (tests/model).
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_in_root(program: str) -> str:
    """What a program prints that is started in the root, with the root first on sys.path."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_kernels_is_hugging_faces_package_in_our_root() -> None:
    program = "import sys, kernels; assert sys.path[0] == ''; print(kernels.__file__, callable(kernels.get_kernel))"
    path, has_get_kernel = run_in_root(program).rsplit(" ", 1)
    assert has_get_kernel == "True"
    assert "site-packages" in path
    assert ROOT / "kernels" not in Path(path).parents


def test_transformers_uses_that_package_and_deberta_imports() -> None:
    # False from is_kernels_available: the pinned pair no longer fits and this test proves nothing (constraints.txt)
    program = (
        "from transformers import DebertaV2Model\n"
        "from transformers.utils import is_kernels_available\n"
        "from disentangled.kernels import counter_rng\n"
        "print(DebertaV2Model.__name__, is_kernels_available(), counter_rng.__name__)"
    )
    assert run_in_root(program) == "DebertaV2Model True disentangled.kernels.counter_rng"
