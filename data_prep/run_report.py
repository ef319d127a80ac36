"""The account of a build, for people: report.md with a picture of the documents' lengths, and rejects.jsonl.

It holds nothing that a second build of the same inputs would not say again: no times, no places.

Used by: build_corpus.py. Tested by: tests/data_prep/test_build_ranks.py.
Not here: the picture itself (draw_lengths.py), the manifest.
"""

import heapq
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from disentangled.data_prep.build_folder import unit_record_path
from disentangled.data_prep.draw_lengths import draw_lengths
from disentangled.data_prep.encode_unit import NUM_LONGEST, UnitRecord
from disentangled.data_prep.shard_schema import SPLITS, Manifest, sum_records
from disentangled.data_prep.whole_file import create_file, write_file

REPORT_NAME = "report.md"
PICTURE_NAME = "lengths.svg"
REJECTS_NAME = "rejects.jsonl"


def collect_rejects(directory: Path, records: Sequence[UnitRecord]) -> None:
    """Put the units' rejected documents together, in the order of the inputs; no file where there are none."""
    paths = [unit_record_path(directory, record.unit).with_suffix(".jsonl") for record in records if record.rejects]
    if paths:
        with create_file(directory / REJECTS_NAME) as file:
            for path in paths:
                file.write(path.read_bytes())


def first_reject(directory: Path, records: Sequence[UnitRecord], source: str) -> str:
    """Return where and why a source's first rejected document was left out."""
    record = next(record for record in records if record.source == source and record.rejects)
    path = unit_record_path(directory, record.unit).with_suffix(".jsonl")
    with path.open(encoding="utf-8") as file:
        row = json.loads(file.readline())
    return f"{row['file']}, {row['reason']}: {row['detail']}"


def write_report(directory: Path, manifest: Manifest, records: Sequence[UnitRecord]) -> None:
    """Write report.md and lengths.svg."""
    write_file(directory / REPORT_NAME, describe_build(manifest, records).encode())
    counts = {
        name: [sum(column) for column in zip(*(r.length_counts for r in records if r.source == name), strict=True)]
        for name in manifest.sources
    }
    write_file(directory / PICTURE_NAME, draw_lengths(counts).encode())


def describe_build(manifest: Manifest, records: Sequence[UnitRecord]) -> str:
    """Return the report, in Markdown."""
    lines = [
        f"# Dataset {manifest.dataset_id[:12]}",
        "",
        f"{manifest.num_pieces:,} pieces, sha256 {manifest.tokenizer_sha256[:12]}; normalizer {manifest.normalizer};"
        f" cleaning: {manifest.cleaning}; seed {manifest.seed}.",
        "",
        "| source | weight | split | documents | tokens | share | bytes/token | unknown | as bytes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, weight in zip(manifest.sources, manifest.source_weights, strict=True):
        for split in SPLITS:
            counts = sum_records(tuple(shard for shard in manifest.splits[split] if shard.source == name))
            share = counts.num_tokens / manifest.counts[split].num_tokens
            sizes = f"{counts.num_documents:,} | {counts.num_tokens:,} | {share:.2%}"
            byte_rate = counts.num_byte_tokens / max(counts.num_tokens, 1)
            rates = f"{counts.bytes_per_token:.3f} | {counts.unknown_rate:.4%} | {byte_rate:.4%}"
            lines.append(f"| {name} | {weight:g} | {split} | {sizes} | {rates} |")
    lines += ["", "## Left out or changed", "", "| source | documents | why |", "|---|---|---|"]
    for name in manifest.sources:
        rejects, changes = Counter[str](), Counter[str]()
        for record in (record for record in records if record.source == name):
            rejects.update(record.rejects)
            changes.update(record.changes)
        lines += [f"| {name} | {rejects[reason]:,} | left out: {reason} |" for reason in sorted(rejects)]
        lines += [f"| {name} | {changes[change]:,} | {change} |" for change in sorted(changes)]
    if lines[-1].startswith("|---"):
        lines[-3:] = ["", "None."]
    lines += ["", "## Lengths", "", f"![tokens in a document]({PICTURE_NAME})", ""]
    lines += ["Longest documents:", "", "| source | tokens | file | starts at |", "|---|---|---|---|"]
    for name in manifest.sources:
        found = [document for record in records if record.source == name for document in record.longest]
        longest = heapq.nsmallest(NUM_LONGEST, found, key=lambda d: (-d.num_tokens, d.file, d.start_byte))
        lines += [f"| {name} | {d.num_tokens:,} | {d.file} | {d.start_byte:,} |" for d in longest]
    return "\n".join(lines) + "\n"
