"""What has never run on a GPU yet, in one command: `python -m benchmarks.first_light --shards DIR --output FILE.jsonl`.

What: first the tests that need a GPU, then a few steps of each recipe with each engine, launched as a user would. Each
run is one JSON line: command, versions, device, exit code, losses, tokens/s and TFLOP/s. A red test or a failed run
ends with exit code 1, and a failed run's line holds no speed. Without a GPU it does the same on the CPU and says so.
Not measured by it: memory, other implementations, more than one GPU.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment, device_name
from benchmarks.tests_first import pytest_command
from disentangled.trainer.metric_log import read_rows

PACKAGES = ("torch", "triton", "deepspeed", "transformers")
KEPT = ("mlm_loss", "rtd_loss", "rtd_auc", "generator_gradient_norm", "tokens_per_second", "achieved_tflops")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="benchmarks.first_light", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, help="a dataset of data_prep")
    parser.add_argument("--output", required=True, type=Path, help="the JSON lines to append to")
    parser.add_argument("--recipes", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--engines", nargs="+", default=["fp32_cpu", "zero2_bf16"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    failed = False
    for row in run_all(options):
        failed |= row["exit_code"] != 0
        line = json.dumps(describe_environment(device_name(), PACKAGES, ()) | row)
        print(line, flush=True)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return int(failed)


def run_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The tests, then every recipe with every engine."""
    yield run_gpu_tests()
    for recipe in options.recipes:
        for engine in options.engines:
            yield run_recipe(recipe, engine, options.shards, options.steps, options.overrides)


def run_gpu_tests() -> dict[str, Any]:
    """The tests marked requires_gpu; without a GPU they skip themselves."""
    command = pytest_command("-m", "requires_gpu", "tests")
    return {"command": shlex.join(command), "exit_code": subprocess.run(command).returncode}


def run_recipe(recipe: str, engine: str, shards: str, steps: int, overrides: Sequence[str]) -> dict[str, Any]:
    """A few steps on one device; the last row of its metrics."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "disentangled.trainer.launch", "--num_accelerators", "1", "--",
            "--recipe", recipe, "--engine", engine, f"data.shards={shards}", f"run.dir={folder}/run",
            f"schedule.total_steps={steps}", "schedule.warmup_steps=1", f"log.every_steps={max(1, steps // 2)}",
            "batch.global_sequences=32", "batch.micro_sequences=16", "evaluate.num_sequences=32", *overrides,
        ]  # fmt: skip
        code = subprocess.run(command).returncode
        rows = [row for row in read_rows(Path(folder) / "run" / "metrics.jsonl") if "mlm_loss" in row]
    row: dict[str, Any] = {"command": shlex.join(command), "recipe": recipe, "engine": engine, "exit_code": code}
    return row | {name: rows[-1][name] for name in KEPT if rows and not code}


if __name__ == "__main__":
    sys.exit(main())
