"""What every figure of the data benchmark carries besides: the processor, the commits of rivals run from source.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment

PACKAGES = (
    "numpy", "pyarrow", "sentencepiece", "tokenizers", "transformers", "torch", "datasets", "datatrove", "litdata",
    "mosaicml-streaming",
)  # fmt: skip


def processor_name() -> str:
    """The processor as Linux names it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def results_folder_name() -> str:
    """ "AMD EPYC 7B13" is cpu-amd-epyc-7b13."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)", "", processor_name().lower()))
    return "-".join(["cpu", *words])


def describe_environment(command: Sequence[str], sources: Sequence[Path]) -> dict[str, Any]:
    """The head of every row; sources are folders with the source code of rivals, each with its commit."""
    device = f"{processor_name()}, {len(os.sched_getaffinity(0))} cores"
    described = environment.describe_environment(device, PACKAGES, command)
    described["versions"] |= {folder.name: describe_commit(folder) for folder in sources}
    return described


def describe_commit(folder: Path) -> str | None:
    """The commit of a clone and its date; None where the folder is none."""
    show = ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"]
    return subprocess.run(show, capture_output=True, text=True).stdout.strip() or None
