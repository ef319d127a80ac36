"""Disentangled attention against its rivals, in one command: `python -m benchmarks.ops`.

What: the tests that need a GPU first, and no number when one is red; then one JSON line for each implementation and
setting, the most important ones first, until the time is up; then a picture and a table with the goals. All of it goes
to benchmarks/results/<device>/. What did not fit in the time is named. A rival that is missing or fails is a row with
its error; when ours fails, or the tests do, the exit code is 1.

Not here: what is timed (rivals.py, attention_problem.py), how (measure.py), what it says (report.py, picture.py).
Tested by: tests/benchmarks/test_ops.py, at small sizes on a CPU.
"""

import argparse
import contextlib
import functools
import gc
import itertools
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention_problem import (
    CASES,
    DTYPES,
    HEAD_WIDTH,
    Problem,
    Setting,
    builtin_text_lengths,
    exact_answer,
    make_problem,
    shard_text_lengths,
)
from benchmarks.environment import describe_environment, device_name
from benchmarks.measure import PASSES, measure
from benchmarks.picture import draw_picture
from benchmarks.report import read_rows, table_lines
from benchmarks.rivals import CPU_DEFAULT, GPU_DEFAULT, IMPLEMENTATIONS, OURS
from benchmarks.tests_first import own_tests_pass

TESTS = ("-m", "requires_gpu", "tests/kernels")
PACKAGES = ("torch", "triton", "transformers", "disentangled-flash", "flashdeberta")
# The lengths with a goal first, then those that show the trend.
LENGTHS = (512, 4096, 1024, 2048, 8192, 256, 128)
HEADS = (12, 16)
RESULTS = Path(__file__).parent / "results"
LONGEST_ERROR = 300


@dataclass(frozen=True)
class Job:
    """One row to be made."""

    setting: Setting
    implementation: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    if options.picture_only is not None:
        report(read_rows(options.picture_only), options.picture_only.with_suffix(".png"))
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    if not own_tests_pass(*TESTS, seconds=60 * options.minutes):
        return 1
    folder = options.output or RESULTS / device_folder(device_name())
    folder.mkdir(parents=True, exist_ok=True)
    text_lengths = builtin_text_lengths() if options.shards is None else shard_text_lengths(options.shards)
    context = describe_environment(device_name(), PACKAGES, ["python", "-m", "benchmarks.ops", *arguments])
    jobs, rows = plan(options), []
    for row in run_jobs(jobs, text_lengths, options.row_seconds, deadline):
        rows.append(context | row)
        print(progress(row), flush=True)
        with (folder / "ops.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1], allow_nan=False) + "\n")
    report(rows, folder / "ops.png")
    for line in left_out(jobs[len(rows) :]):
        print(line)
    return int(not rows or any("error" in row and row["implementation"] in OURS for row in rows))


def make_parser() -> argparse.ArgumentParser:
    """All options choose a part of the grid but the last five."""
    default = GPU_DEFAULT if torch.cuda.is_available() else CPU_DEFAULT
    parser = argparse.ArgumentParser(prog="benchmarks.ops", description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=numbers, default=LENGTHS, metavar="N,...", help="tokens of the longest row")
    parser.add_argument("--tokens", type=int, default=16_384, help="in the whole batch")
    parser.add_argument("--heads", type=numbers, default=HEADS, metavar="N,...")
    parser.add_argument("--dtypes", type=names(DTYPES), default=("bf16", "fp16"), metavar=",".join(DTYPES))
    parser.add_argument("--cases", type=names(CASES), default=CASES, metavar="CASE,...", help=", ".join(CASES))
    parser.add_argument(
        "--implementations", type=names(IMPLEMENTATIONS), default=default, metavar="NAME,...",
        help=f"{', '.join(IMPLEMENTATIONS)}; left out unless named: torch",
    )  # fmt: skip
    parser.add_argument("--shards", type=Path, metavar="DIR", help="a dataset whose documents' lengths are taken")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after these; tests included")
    parser.add_argument("--row-seconds", type=float, default=100.0, help="a row that takes longer has failed")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument(
        "--picture-only",
        type=Path,
        metavar="FILE",
        help="picture and table of rows made before, the newest of each kind",
    )
    return parser


def numbers(text: str) -> tuple[int, ...]:
    """ "512,1024" as numbers."""
    return tuple(int(part) for part in text.split(","))


def names(known: Sequence[str] | dict[str, Any]) -> Callable[[str], tuple[str, ...]]:
    """A reader of "this,that" that knows what there is."""

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        for name in chosen:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: give some of {', '.join(known)}")
        return chosen

    return read


def device_folder(name: str) -> str:
    """ "NVIDIA H200" is h200."""
    return name.lower().removeprefix("nvidia ").replace(" ", "-")


def plan(options: argparse.Namespace) -> list[Job]:
    """The grid in the order of importance: the fewer differences from 12 heads, bf16, dense, the earlier."""
    jobs = []
    for heads, dtype, case, length, name in itertools.product(
        options.heads, options.dtypes, options.cases, options.lengths, options.implementations
    ):
        setting = Setting(length, heads, dtype, case, options.tokens)
        if IMPLEMENTATIONS[name].takes(setting.layout, setting.dropout):
            jobs.append(Job(setting, name))
    return sorted(jobs, key=lambda job: differences(job, options))


def differences(job: Job, options: argparse.Namespace) -> float:
    """How far a row is from the first of each option, with half a step for slow starters; ties keep their order."""
    setting = job.setting
    return (
        (setting.heads != options.heads[0])
        + (setting.dtype != options.dtypes[0])
        + (setting.layout != "dense")
        + (setting.dropout > 0)
        + 0.5 * IMPLEMENTATIONS[job.implementation].slow_start
    )


def run_jobs(
    jobs: Sequence[Job], text_lengths: tuple[int, ...], row_seconds: float, deadline: float
) -> Iterator[dict[str, Any]]:
    """A row for each job, in order, until the deadline or until the device is lost."""
    device = "cuda" if torch.cuda.is_available() else "cpu"

    @functools.lru_cache(maxsize=1)  # neighbours in the plan share their problem
    def problem_and_answer(setting: Setting) -> tuple[Problem, dict[str, Tensor] | None]:
        problem = make_problem(setting, text_lengths, device)
        return problem, exact_answer(problem)

    def figures(job: Job) -> dict[str, Any]:
        problem, exact = problem_and_answer(job.setting)
        if job.setting.dropout and job.implementation not in OURS:
            exact = None  # a rival drops other probabilities than the reference
        prepared = IMPLEMENTATIONS[job.implementation].prepare(problem)
        sizes = {"num_documents": len(problem.lengths), "live_tokens": sum(problem.lengths)}
        return sizes | {"detail": prepared.detail} | measure(problem, prepared, exact)

    for job in jobs:
        started = time.monotonic()
        remaining = deadline - started
        if remaining <= 0:
            return
        row = asdict(job.setting) | {"head_width": HEAD_WIDTH, "implementation": job.implementation}
        try:
            with time_limit(min(row_seconds, remaining)):
                row |= figures(job)
        # The one place for any Exception: whatever a rival raises, on whatever machine, is a result about that rival
        # and not a fault of this program, and the rows after it are still wanted.
        except Exception as error:
            if isinstance(error, TimeoutError) and remaining < row_seconds:
                return  # the run's time was too short for this row, not the row too slow
            row["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
        yield row | {"row_seconds": time.monotonic() - started}
        gc.collect()
        if device == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError as error:  # an illegal access ends the process's use of the device
                print(f"the device is lost after this row, so the run ends: {error}")
                return


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """TimeoutError in the body after these seconds, as soon as Python runs again: compilers and searches do return."""

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds:.0f} s, compilation included")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def progress(row: dict[str, Any]) -> str:
    """A row in one line, while the others are made."""
    head = f"N={row['length_tokens']} H={row['heads']} {row['dtype']} {row['case']} {row['implementation']}: "
    if "error" in row:
        return head + row["error"]
    times = ", ".join(f"{name} {row[f'{name}_median_milliseconds']:.3f}" for name in PASSES)
    memory = row["extra_memory_bytes"]
    errors = row["relative_errors"]
    return (
        f"{head}{times} ms, {row['forward_backward_tflops']:.2f} TFLOP/s"
        + ("" if memory is None else f", {memory / 2**20:.0f} MiB")
        + ("" if errors is None else f", error {max(errors.values()):.1e}")
    )


def report(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    """Draw the picture and print the table."""
    for line in table_lines(rows):
        print(line)
    print(f"picture: {picture}" if draw_picture(rows, picture) else "no picture: it needs times of ours and of a rival")


def left_out(jobs: Sequence[Job]) -> Iterator[str]:
    """The rows for which there was no time, a line for each kind."""
    kinds: dict[str, list[str]] = {}
    for job in jobs:
        kind = f"{job.setting.heads} heads, {job.setting.dtype}, {job.setting.case}, {job.implementation}"
        kinds.setdefault(kind, []).append(str(job.setting.length_tokens))
    if jobs:
        yield f"left out for lack of time, {len(jobs)} rows:"
    for kind, lengths in kinds.items():
        yield f"  {kind}: N = {', '.join(lengths)}"


if __name__ == "__main__":
    sys.exit(main())
