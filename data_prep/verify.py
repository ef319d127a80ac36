"""The command that looks for every fault of a dataset and names each in a line.

    python -m disentangled.data_prep.verify DIR            the checksum of every shard, at the speed of the disk
    python -m disentangled.data_prep.verify DIR --quick    sizes, footers, counts
    python -m disentangled.data_prep.verify DIR --full     also sha256, every id and every offset

Exit codes: 0 no fault, 1 faults (on stdout), else as in command_line.py.
Used by: the command line. Tested by: tests/data_prep/test_verify.py.
Not here: the checks themselves (load_manifest.py, open_shard.py).
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from disentangled.data_prep.command_line import OneLineParser, run_command
from disentangled.data_prep.load_manifest import examine_manifest, examine_record, read_manifest
from disentangled.data_prep.open_shard import Report, Verification, examine_shard
from disentangled.data_prep.shard_schema import SPLITS, Manifest, encode_json

EXIT_FAULTS = 1


def verify_dataset(directory: str | Path, level: Verification, report: Report, progress: Progress) -> Manifest | None:
    """Tell report every fault of a dataset, in the order of its files; return the manifest if it can be read."""
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        report(str(error))
        return None
    examine_manifest(directory, manifest, report)
    records = [record for split in SPLITS for record in manifest.splits.get(split, ())]
    bar = progress.add_task(f"verifying {len(records):,} shards", total=sum(record.size_bytes for record in records))
    for record in records:
        examine_record(directory, record, manifest, report)
        examine_shard(directory, record, level, report)
        sidecar = (Path(directory) / record.path).with_suffix(".json")
        if not sidecar.is_file() or sidecar.read_bytes() != encode_json(record):
            report(f"{sidecar}: missing or not what the manifest says of its shard: restore it")
        progress.advance(bar, record.size_bytes)
    for stray in _find_strays(Path(directory), {record.path for record in records}):
        report(f"{stray}: a shard that the manifest does not list: remove it")
    return manifest


def _find_strays(directory: Path, listed: set[str]) -> Iterator[Path]:
    """Yield the .arrow files that are no part of the dataset."""
    for split in SPLITS:
        for path in sorted((directory / split).glob("*.arrow")):
            if path.relative_to(directory).as_posix() not in listed:
                yield path


def describe_verified(directory: str | Path, manifest: Manifest, level: Verification) -> str:
    """Return the line about a dataset without faults."""
    totals = manifest.totals
    sizes = f"{totals.num_shards:,} shards, {totals.num_documents:,} documents, {totals.num_tokens:,} tokens"
    return f"{directory}: OK ({level}): {sizes}, dataset {manifest.dataset_id[:12]}"


def _run(arguments: Sequence[str] | None) -> None:
    parser = OneLineParser(prog="verify", description="Look for every fault of a dataset; by default by checksum.")
    parser.add_argument("directory", metavar="DIR", help="a dataset's folder")
    levels = parser.add_mutually_exclusive_group()
    levels.add_argument("--quick", action="store_true", help="read no more than sizes, footers and counts")
    levels.add_argument("--full", action="store_true", help="also sha256, every id and every offset")
    parsed = parser.parse_args(arguments)
    level: Verification = "quick" if parsed.quick else "full" if parsed.full else "checksum"
    if not Path(parsed.directory).is_dir():
        raise ValueError(f"{parsed.directory}: no such folder: name a dataset's")
    console = Console(stderr=True)
    num_faults = 0

    def tell(fault: str) -> None:
        nonlocal num_faults
        num_faults += 1
        print(f"fault: {fault}")

    # the faults go to stdout, as they are found; on a terminal the bar stays below them
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        manifest = verify_dataset(parsed.directory, level, tell, progress)
    if num_faults:
        print(f"{parsed.directory}: {num_faults:,} {'fault' if num_faults == 1 else 'faults'} ({level})")
        raise SystemExit(EXIT_FAULTS)
    assert manifest is not None, "where it cannot be read, that is a fault"
    print(describe_verified(parsed.directory, manifest, level))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    try:
        return run_command(lambda: _run(arguments), "only read")
    except SystemExit as stop:
        if stop.code != EXIT_FAULTS:
            raise
        return EXIT_FAULTS


if __name__ == "__main__":
    sys.exit(main())
