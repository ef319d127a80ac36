"""Part a: raw text to token files on disk, with one and with two workers; speed, size, memory, the same bytes.

Every run is a process of its own, the implementations take turns in every repetition. The time is that of the work in
a process that has its imports behind it; the start of workers counts. Memory is the largest peak of resident memory of
any one process that took part.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py. Not here: what is run (preparers.py).
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.data import our_preparation
from benchmarks.data.prepare_child import describe_text
from benchmarks.data.rounds import LONGEST_ERROR, Absent, Row
from benchmarks.data.text import Text

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS = (
    0.1  # how often processes are looked at; peaks are kept by the kernel, only the last ones could be missed
)
LIMIT_SECONDS = 600
KILL_POLL_SECONDS = 0.001


def measure_preparation(text: Text, long_text: Text, names: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """A row for each implementation and number of workers, then rows on memory and on equal bytes."""
    samples: dict[tuple[str, int], list[dict[str, Any]]] = {}
    failures: dict[tuple[str, int], str] = {}
    for _ in range(options.repeats):
        for num_workers in (1, 2):
            for name in names:
                key = (name, num_workers)
                # a failure is not repeated; bare encoding is one process
                if key in failures or (name == "bare" and num_workers > 1):
                    continue
                if name not in ("ours", "bare") and num_workers not in options.workers:
                    continue
                try:
                    found = run_once(name, num_workers, text, options)
                    samples.setdefault(key, []).append(found)
                except Absent as absent:
                    failures |= {(name, count): f"absent: {absent}" for count in options.workers}
                except RuntimeError as error:
                    failures[key] = str(error)[-LONGEST_ERROR:]
    for (name, num_workers), error in failures.items():
        yield Row("prepare", f"{num_workers} workers", name, error=error)
    for (name, num_workers), runs in samples.items():
        if (name, num_workers) not in failures:
            yield Row("prepare", f"{num_workers} workers", name, figures=summarize(runs, text.num_bytes))
    yield from measure_long_text(text, long_text, options)
    hashes = {num_workers: runs[0]["shard_hashes"] for (name, num_workers), runs in samples.items() if name == "ours"}
    if len(hashes) == 2:
        yield Row("prepare", "same bytes", "ours", figures=compare_bytes(hashes, text, options))


def summarize(runs: list[dict[str, Any]], num_bytes: int) -> dict[str, Any]:
    """The figures of all repetitions of one implementation."""
    figures: dict[str, Any] = {
        "megabytes_per_second": [num_bytes / 1e6 / run["seconds"] for run in runs],
        "megabytes_per_cpu_second": [num_bytes / 1e6 / run["cpu_seconds"] for run in runs],
        "num_tokens": runs[0]["num_tokens"],
        # bare encoding writes none
        "bytes_per_token": runs[0]["bytes_written"] / runs[0]["num_tokens"] or None,
        "peak_process_bytes": max(run["peak_process_bytes"] for run in runs),
    }
    return figures


def run_once(name: str, num_workers: int, text: Text, options: argparse.Namespace) -> dict[str, Any]:
    """Run it; Absent where the library is not installed, RuntimeError where it fails."""
    folder = options.scratch / "prepared"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    report = folder / "report"
    launcher: list[str] = []
    if name.startswith("ours"):
        try:
            launcher = our_preparation.launcher(num_workers)
        except ModuleNotFoundError as error:
            raise Absent(str(error)) from None
    command = [
        *launcher, sys.executable, "-m", "benchmarks.data.prepare_child", name, str(num_workers), describe_text(text),
        str(folder / "output"), str(report),
    ]  # fmt: skip
    if options.megatron is not None:
        command += ["--megatron", str(options.megatron)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        peak_process_bytes, watched_cpu_seconds = watch_tree(process)
    if process.returncode or not (report / "0.json").exists():
        lines = (folder / "log").read_text("utf-8", errors="replace").split("\n")
        raise RuntimeError(" ".join(" ".join(lines[-12:]).split()) or f"exit code {process.returncode}")
    reports = [json.loads(path.read_text("utf-8")) for path in sorted(report.iterdir())]
    first: dict[str, Any] = reports[0]
    if "absent" in first:
        raise Absent(first["absent"])
    # a process does not count the children of a fork server; what is seen from here lacks each one's last moments
    counted = sum(found["cpu_seconds"] for found in reports)
    cpu_seconds = max(counted, watched_cpu_seconds - sum(found["cpu_seconds_before"] for found in reports))
    return first | {"cpu_seconds": cpu_seconds, "peak_process_bytes": peak_process_bytes}


def watch_tree(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Wait for the end, at most LIMIT_SECONDS. Of the processes below: the largest peak of resident memory of any one,
    and the CPU time of all as it was when each was last seen."""
    peaks: dict[int, int] = {}
    cpu_seconds: dict[int, float] = {}
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            kill_session(process)
            break
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(process.pid)
            for member in [top, *top.children(recursive=True)]:
                peaks[member.pid] = max(peaks.get(member.pid, 0), peak_resident_bytes(member.pid))
                times = member.cpu_times()
                cpu_seconds[member.pid] = times.user + times.system
        time.sleep(SAMPLE_SECONDS)
    process.wait()
    return max(peaks.values(), default=0), sum(cpu_seconds.values())


def peak_resident_bytes(pid: int) -> int:
    """VmHWM, which the kernel keeps; 0 for a process that has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def kill_session(process: "subprocess.Popen[bytes]") -> None:
    """End a command and all that it started; mpirun's ranks are in process groups of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        members = psutil.Process(process.pid).children(recursive=True)
        for member in [psutil.Process(process.pid), *members]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(members)


def measure_long_text(text: Text, long_text: Text, options: argparse.Namespace) -> Iterator[Row]:
    """Ours at its default range, one worker: memory on two sizes of text, and speed beside bare encoding on the longer.

    Loading the tokenizer and planning take as long for any text, so the longer one shows the speed per core.
    """
    yield from measure_turns("default range, part", ["ours_default_range"], text, 1, options)
    yield from measure_turns("default range, ids in 24 bits", ["ours_24_bits"], text, 1, options)
    names = ["ours_default_range", "bare"]
    yield from measure_turns("default range, long text", names, long_text, options.repeats, options)


def measure_turns(
    case: str, names: list[str], text: Text, num_repeats: int, options: argparse.Namespace
) -> Iterator[Row]:
    """Rows of implementations that take turns with one worker."""
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(num_repeats):
        for name in names:
            samples[name].append(run_once(name, 1, text, options))
    for name, runs in samples.items():
        figures = {"text_bytes": text.num_bytes} | summarize(runs, text.num_bytes)
        yield Row("prepare", case, name.removesuffix("_default_range").removesuffix("_24_bits"), figures=figures)


def compare_bytes(hashes: dict[int, dict[str, str]], text: Text, options: argparse.Namespace) -> dict[str, Any]:
    """Whether two MPI workers, and a build killed when its first shard is there and started again, write what one
    process does. hashes: of the shards by number of workers."""
    folder = options.scratch / "killed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = [
        *our_preparation.launcher(2), sys.executable, "-m", "benchmarks.data.prepare_child", "ours", "2",
        describe_text(text), str(folder / "output"), str(folder / "report"),
    ]  # fmt: skip
    quiet = subprocess.DEVNULL
    first = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=ROOT, start_new_session=True)
    while first.poll() is None and not our_preparation.has_shards(folder / "output"):
        time.sleep(KILL_POLL_SECONDS)
    kill_session(first)
    first.wait()
    was_at_work = not our_preparation.is_finished(folder / "output")
    if was_at_work:
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return {
        "num_shards": len(hashes[1]),
        "two_workers_equal": hashes[2] == hashes[1],
        "killed_equal": our_preparation.shard_hashes(folder / "output") == hashes[1],
        "was_killed_at_work": was_at_work,
    }
