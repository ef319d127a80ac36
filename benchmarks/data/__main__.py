"""The data path against its peers, in one command: `python -m benchmarks.data`.

What: the tests of the data path first, and no number when one is red; then raw text to shards, windows at random,
masking, packing, whole batches, the first batch far into a run, and damaged files, ours beside every peer that is
installed or whose clone is named. Rows go to benchmarks/results/<device>/data.jsonl, a page with the goals to data.md,
a picture to data.png. A peer that is missing is one line; when ours fails, or the tests do, the exit code is 1.

Not here: how our data path is called (our_preparation.py, our_data.py, no other file), peers' calls (preparers.py,
readers.py, maskers.py, integrity.py), goals (goals.py). Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.data import our_data, our_preparation
from benchmarks.data.environment import describe_environment, results_folder_name
from benchmarks.data.integrity import measure_integrity
from benchmarks.data.maskers import make_batches, measure_masking
from benchmarks.data.packing import measure_packing
from benchmarks.data.picture import draw_picture
from benchmarks.data.prepare import measure_preparation
from benchmarks.data.preparers import preparers
from benchmarks.data.readers import measure_batches, measure_gather
from benchmarks.data.report import read_rows, report_lines, write_report
from benchmarks.data.rounds import Row
from benchmarks.data.start import measure_start
from benchmarks.data.text import Text, make_text
from benchmarks.tests_first import own_tests_pass

RESULTS = Path(__file__).parents[1] / "results"
PARTS = ("prepare", "gather", "mask", "pack", "batches", "start", "order", "integrity")
MEGABYTE = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    if options.report_only is not None:
        report(read_rows(options.report_only), options.report_only.parent)
        return 0
    if not own_tests_pass("-m", "not slow", *our_data.TESTS):
        return 1
    # one thread everywhere: what is compared is work per core
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    folder = options.output or RESULTS / results_folder_name()
    folder.mkdir(parents=True, exist_ok=True)
    clones = [path for path in (options.megatron, options.deberta, options.modernbert) if path is not None]
    context = describe_environment(["python", "-m", "benchmarks.data", *arguments], clones)
    context["run"] = f"{context['date']} {time.time_ns()}"
    rows = []
    with tempfile.TemporaryDirectory(prefix="data-benchmark-") as scratch:
        options.scratch = Path(scratch)
        for row in run_parts(options):
            rows.append(context | asdict(row))
            print(progress(row), flush=True)
            with (folder / "data.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1], allow_nan=False) + "\n")
    report(read_rows(folder / "data.jsonl"), folder)
    return int(any(row["error"] is not None and row["implementation"].startswith("ours") for row in rows))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.data", description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, metavar="FILE", help="a .txt; default: Python's own English, about 2 MB")
    parser.add_argument("--megabytes", type=float, default=12.0, help="of it, to time peers on (%(default)s)")
    parser.add_argument(
        "--long-megabytes", type=float, default=100.0, help="of it, for memory and speed per core (%(default)s)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="SPM_MODEL", help="default: trained on the text")
    parser.add_argument("--parts", type=part_names, default=PARTS, metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--implementations", type=lambda text: text.split(","), metavar="NAME,...",
                        help="of prepare and integrity; default: all")  # fmt: skip
    parser.add_argument("--workers", type=worker_counts, default=(1, 2), metavar="1,2",
                        help="to prepare with, for peers; ours and bare encoding always have all (1,2)")  # fmt: skip
    parser.add_argument("--megatron", type=Path, metavar="DIR", help="a clone of NVIDIA/Megatron-LM")
    parser.add_argument("--deberta", type=Path, metavar="DIR", help="a clone of microsoft/DeBERTa")
    parser.add_argument("--modernbert", type=Path, metavar="DIR", help="a clone of AnswerDotAI/ModernBERT")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions of everything timed (%(default)s)")
    parser.add_argument(
        "--order-samples",
        type=int,
        default=100_000_000,
        help="samples in the order of mosaicml-streaming (%(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument("--report-only", type=Path, metavar="FILE", help="page and picture of rows made before")
    return parser


def worker_counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def part_names(text: str) -> tuple[str, ...]:
    chosen = tuple(text.split(","))
    for name in chosen:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"{name!r} is unknown: give some of {', '.join(PARTS)}")
    return chosen


def run_parts(options: argparse.Namespace) -> Iterator[Row]:
    """The rows of all parts in turn."""
    # a peer's threads would be counted as ours
    import torch

    torch.set_num_threads(1)
    long_text = make_text(
        options.text, int(options.long_megabytes * MEGABYTE), options.tokenizer, options.scratch / "long"
    )
    text = make_text(long_text.plain, int(options.megabytes * MEGABYTE), long_text.tokenizer, options.scratch / "text")
    yield describe_text(text, long_text, options)
    names = [name for name in preparers(options) if name not in ("ours_default_range", "ours_24_bits")]
    if options.implementations is not None:
        names = [name for name in names if name in options.implementations]
    dataset = options.scratch / "dataset"
    if set(options.parts) - {"prepare", "integrity"}:
        our_preparation.prepare(text.plain, text.tokenizer, dataset, None)
    read = options.scratch / "read"
    read.mkdir()
    parts = {
        "prepare": lambda: measure_preparation(text, long_text, names, options),
        "gather": lambda: measure_gather(dataset, read, options),
        "mask": lambda: measure_masking(make_batches(our_data.training_tokens(dataset)[0], text), options),
        "pack": lambda: measure_packing(dataset, text, options),
        "batches": lambda: measure_batches(dataset, text, read, options),
        "start": lambda: measure_start(dataset, options),
        "order": lambda: measure_order(dataset),
        "integrity": lambda: measure_integrity(long_text, names, options),
    }
    for part in options.parts:
        yield from parts[part]()


def describe_text(text: Text, long_text: Text, options: argparse.Namespace) -> Row:
    figures: dict[str, Any] = {
        "source": "Python's own English" if options.text is None else options.text.name,
        "num_bytes": text.num_bytes,
        "num_documents": text.num_documents,
        "long_bytes": long_text.num_bytes,
        "num_pieces": our_preparation.special_ids(text.tokenizer).mask,
    }
    return Row("text", ",".join(options.parts), "all", figures=figures)


def measure_order(dataset: Path) -> Iterator[Row]:
    """What has no rival: the same batches however a step is shared out, and the shares of a mixture."""
    yield Row("order", "same batches", "ours", figures=our_data.compare_ways(dataset))
    yield Row("order", "mixture", "ours", figures=our_data.mixture_error())


def progress(row: Row) -> str:
    """A row in one line, while the others are made."""
    head = f"{row.part}, {row.case}, {row.implementation}: "
    return head + (row.error or ", ".join(f"{key} {brief(value)}" for key, value in row.figures.items()))


def brief(value: Any) -> str:
    if isinstance(value, list):
        return "/".join(map(brief, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write the page and the picture, print the goals."""
    write_report(rows, folder / "data.md")
    lines = list(report_lines(rows))
    start = lines.index("## Goals")
    for line in lines[start : lines.index("", start + 2)]:
        print(line)
    has_picture = draw_picture(rows, folder / "data.png")
    print(f"page: {folder / 'data.md'}" + (f", picture: {folder / 'data.png'}" if has_picture else ", no picture"))


if __name__ == "__main__":
    sys.exit(main())
