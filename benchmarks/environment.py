"""What every figure must carry: date, device, versions and command.

Used by: benchmarks/ops.py, first_light.py, data/environment.py. Tested by: tests/benchmarks/test_ops.py, test_data.py.
"""

import datetime
import importlib.metadata
import platform
import shlex
from collections.abc import Sequence
from typing import Any

import torch


def device_name() -> str:
    """The GPU's, or "cpu"."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def describe_environment(device: str, packages: Sequence[str], command: Sequence[str]) -> dict[str, Any]:
    """The head of a row; a package that is not here has no version."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "date": datetime.date.today().isoformat(),
        "device": device,
        "versions": versions,
        "command": shlex.join(command),
    }
