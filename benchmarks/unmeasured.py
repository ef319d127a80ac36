"""Whatever has no results on this GPU yet, in one command: `python -m benchmarks.unmeasured --shards DIR`.

What: the programs below, the tests that need a GPU first of all, then the newest before the others, each with what is
left of `--minutes`; a program whose results of this device are there is passed over (`--again` runs it too). Each runs
its own tests before it times anything and appends its rows to `--output`. At the end a line for each says what came of
it; the exit code is 0 where all that was begun ended well. Without a GPU nothing runs: the lines say what is missing.
Tested by: tests/benchmarks/test_unmeasured.py.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.environment import device_name
from benchmarks.ops import device_folder

RESULTS = Path(__file__).parent / "results"
LEAST_SECONDS = 20.0  # what is left must be enough to begin with


@dataclass(frozen=True)
class Program:
    """One of the benchmarks. arguments: {output}, {shards} and {minutes} are filled in."""

    name: str
    result: str
    arguments: tuple[str, ...]


PROGRAMS = (
    Program("first_light", "first_light.jsonl", ("--shards", "{shards}", "--output", "{output}/first_light.jsonl")),
    Program("hidden", "hidden.jsonl", ("--output", "{output}")),
    Program("scaling", "scaling.jsonl", ("--output", "{output}")),
    Program("step", "step.jsonl", ("--output", "{output}", "--minutes", "{minutes}")),
    Program("embedding", "embedding.jsonl", ("--output", "{output}")),
    Program("masked_lm", "masked_lm.jsonl", ("--output", "{output}")),
    Program("drop_in", "drop_in.jsonl", ("--output", "{output}")),
    Program("ops", "ops.jsonl", ("--output", "{output}", "--minutes", "{minutes}")),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.unmeasured", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, metavar="DIR", help="a dataset of data_prep, for first_light")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument("--again", action="store_true", help="also what has results")
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    folder = options.output or RESULTS / device_folder(device_name())
    deadline = time.monotonic() + options.minutes * 60
    outcomes = {}
    for program in PROGRAMS:
        if has_gpu and (folder / program.result).exists() and not options.again:
            outcomes[program.name] = f"has results: {folder / program.result}"
        elif not has_gpu:
            outcomes[program.name] = "unmeasured: this machine has no GPU"
        else:
            folder.mkdir(parents=True, exist_ok=True)
            outcomes[program.name] = run_program(program, options.shards, folder, deadline - time.monotonic())
    for name, outcome in outcomes.items():
        print(f"{name:12} {outcome}")
    return int(any(outcome.startswith("failed") for outcome in outcomes.values()))


def run_program(program: Program, shards: Path | None, folder: Path, seconds: float) -> str:
    """Run one program for no longer than that; returns its outcome in words."""
    if shards is None and "{shards}" in program.arguments:
        return "unmeasured: needs --shards DIR"
    if seconds < LEAST_SECONDS:
        return "unmeasured: no time was left, run the same command again"
    filled = {"{output}": str(folder), "{shards}": str(shards), "{minutes}": f"{max(0.0, seconds - 10) / 60:.2f}"}
    words = list(program.arguments)
    for place, value in filled.items():
        words = [word.replace(place, value) for word in words]
    command = [sys.executable, "-m", f"benchmarks.{program.name}", *words]
    print(f"--- {' '.join(command[1:])}", flush=True)
    started = time.monotonic()
    try:
        code = subprocess.run(command, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"failed: cut off after {seconds:.0f} s; what it measured until then is in {folder / program.result}"
    took = time.monotonic() - started
    return f"measured in {took:.0f} s: {folder / program.result}" if code == 0 else f"failed with exit code {code}"


if __name__ == "__main__":
    sys.exit(main())
