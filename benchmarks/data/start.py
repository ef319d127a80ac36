"""Part f: to the first batch of a run that goes on at a sample far into it; time, and growth of resident memory.

Every measurement is a forked child, whose memory starts from the same state. For ours, the data set is opened as a run
opens it, then the batch at a sample beyond 10**9 is built. Beside it, what mosaicml-streaming computes at every start:
the py1e order and the partition of --order-samples samples.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import our_data
from benchmarks.data.rounds import Row

FAR_SAMPLE = 1_500_000_000
FAR_WINDOWS = 3_000_000_000
MDS_SHARD_SAMPLES = 1 << 16


def measure_start(dataset: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Rows for ours on the real data and on the algebra of 3e9 windows, and for mosaicml-streaming."""
    cases: list[tuple[str, str, Callable[[], Callable[[], Any]]]] = [
        ("open and first batch", "ours", functools.partial(our_data.open_and_build, dataset, FAR_SAMPLE)),
        ("first batch once open", "ours", functools.partial(our_data.build_at, dataset, FAR_SAMPLE)),
        ("order alone", "ours", functools.partial(our_data.order_at, FAR_SAMPLE, FAR_WINDOWS)),
        ("order alone", "mds", functools.partial(order_mds, options.order_samples)),
    ]
    for case, name, make in cases:
        runs = []
        for _ in range(options.repeats):
            found = run_in_child(make)
            if "error" in found:
                yield Row("start", case, name, error=found["error"])
                break
            runs.append(found)
        else:
            figures = {key: [run[key] for run in runs] for key in ("seconds", "cpu_seconds", "grown_bytes")}
            samples = options.order_samples if name == "mds" else FAR_WINDOWS
            yield Row("start", case, name, figures=figures | {"num_samples": samples if "order" in case else None})


def order_mds(num_samples: int) -> Callable[[], Any]:
    """The two steps of its generate_work for one node of 8 ranks."""
    from streaming.base.partition import get_partitions
    from streaming.base.shuffle import get_shuffle

    def order() -> Any:
        sizes = np.full(num_samples // MDS_SHARD_SAMPLES, MDS_SHARD_SAMPLES, np.int64)
        count = int(sizes.sum())
        sample_ids = get_partitions("relaxed", count, 1, 1, 8, 1, 64, count // 2)
        shuffled = get_shuffle("py1e", sizes, 1, 9176, 0, 1 << 18)
        return np.where(sample_ids != -1, shuffled[sample_ids], -1)

    return order


def run_in_child(make: Callable[[], Callable[[], Any]]) -> dict[str, Any]:
    """Seconds and growth of memory of what make returns, whose own work (imports, opening) is not counted."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(make, theirs))
    process.start()
    theirs.close()
    try:
        found: dict[str, Any] = ours.recv()
    except EOFError:
        found = {"error": "the process ended without a result"}
    process.join()
    return found


def _measure(make: Callable[[], Callable[[], Any]], results: Connection) -> None:
    """The child's side. The kernel's peak would count what the parent once held, so the peak is reset first."""
    try:
        work = make()
    except ImportError as error:
        results.send({"error": f"absent: {error}"})
        return
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to what is resident now
    before, cpu_started, started = peak_bytes(), time.process_time(), time.perf_counter()
    kept = work()
    seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - cpu_started
    results.send({"seconds": seconds, "cpu_seconds": cpu_seconds, "grown_bytes": peak_bytes() - before})
    assert kept is not None


def peak_bytes() -> int:
    """VmHWM of this process."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
