"""One preparation in a process of its own: imports first, then the stopwatch around the work.

    python -m benchmarks.data.prepare_child NAME WORKERS TEXT OUTPUT REPORT [--megatron DIR]

TEXT is a text as JSON, REPORT a folder in which each MPI rank, else rank 0, leaves what it found.

Used by: benchmarks/data/prepare.py.
"""

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

from benchmarks.data import our_preparation
from benchmarks.data.preparers import preparers
from benchmarks.data.text import Text


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("workers", type=int)
    parser.add_argument("text")
    parser.add_argument("output", type=Path)
    parser.add_argument("report", type=Path)
    parser.add_argument("--megatron", type=Path)
    options = parser.parse_args()
    described = json.loads(options.text)
    text = Text(Path(described["folder"]), described["num_documents"], described["num_bytes"])
    report = {}
    try:
        loaded = preparers(options)[options.name]()
    except ImportError as error:
        report = {"absent": f"{type(error).__name__}: {error}"}
    else:
        cpu_before, started = cpu_seconds(), time.perf_counter()
        loaded.run(text, options.output, options.workers)
        report["seconds"] = time.perf_counter() - started
        report["cpu_seconds"] = cpu_seconds() - cpu_before
        report["cpu_seconds_before"] = cpu_before
        if our_preparation.rank() == 0:
            report["bytes_written"], report["num_tokens"] = loaded.count(options.output)
            if options.name == "ours":
                report["shard_hashes"] = our_preparation.shard_hashes(options.output)
    options.report.mkdir(exist_ok=True)
    (options.report / f"{our_preparation.rank()}.json").write_text(json.dumps(report), "utf-8")
    return 0


def cpu_seconds() -> float:
    """Of this process and of those of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def describe_text(text: Text) -> str:
    """A text as this command's argument."""
    return json.dumps(dataclasses.asdict(text) | {"folder": str(text.folder)})


if __name__ == "__main__":
    sys.exit(main())
