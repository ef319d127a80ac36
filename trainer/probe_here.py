"""Steps per day of a planned run, from a short probe on the accelerators of this machine.

What: launches trainer/probe.py with DeepSpeed on as many ranks as this machine has accelerators (without one: CPUs),
at most those of the run, in a folder of its own that is removed; each does the work of one rank of the run.
Used by: trainer/plan.py. Tested by tests/trainer/test_probe.py.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from disentangled.trainer.launch import find_free_port, searchable_path

PROBE_MODULE = "disentangled.trainer.probe"


def probe_here(recipe: str, engine: str, overrides: Sequence[str], num_ranks: int, num_steps: int) -> list[str]:
    """Time `num_steps` steps; the result in lines.

    Raises:
        ValueError: the probe could not run; what it said last.
    """
    num_here = min(num_ranks, torch.accelerator.device_count() or os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="disentangled_probe_") as folder:
        words = [
            *("--num_accelerators", str(num_here), "--master_port", str(find_free_port()), "--module", PROBE_MODULE),
            *("--recipe", recipe, "--engine", engine, "--ranks", str(num_ranks), "--steps", str(num_steps)),
            *(*overrides, f"run.dir={Path(folder) / 'run'}"),
        ]
        finished = subprocess.run(
            [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical", *words],
            env=os.environ | {"PATH": searchable_path(os.environ.get("PATH", os.defpath))},
            capture_output=True,
            text=True,
            check=False,
        )
    if finished.returncode:
        said = [line for line in finished.stderr.splitlines() if line.strip()] or ["it said nothing"]
        line = next((line for line in said if line.startswith("error: ")), said[-1]).removeprefix("error: ")
        raise ValueError(f"the probe ended with exit code {finished.returncode}: {line}")
    return [
        finished.stdout.splitlines()[-1],
        f"(median of {num_steps} steps on {num_here} of {num_ranks} ranks, all on this machine: without the network to "
        "others, evaluations and checkpoints)",
    ]
