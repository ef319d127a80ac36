"""The command that shows what a dataset or a shard holds: its numbers, its checksum and its first rows as text.

    python -m disentangled.data_prep.inspect_shard DIR_OR_SHARD --rows 5

Used by: the command line. Tested by: tests/data_prep/test_inspect_shard.py.
Not here: the verification of every shard (verify.py).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from disentangled.data_prep.command_line import OneLineParser, run_command
from disentangled.data_prep.describe_dataset import describe_dataset, describe_tokenizer
from disentangled.data_prep.shard_schema import (
    MANIFEST_NAME,
    SPLITS,
    TOKENIZER_NAME,
    Manifest,
    OpenShard,
    ShardRecord,
    load_manifest,
    open_shard,
)
from disentangled.data_prep.token_storage import COLUMNS
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer

LINE_CELLS = 76
NUM_TEXT_LINES = 3
NUM_PIECES_SHOWN = 24


def find_shard(path: Path) -> tuple[Path, Manifest, ShardRecord]:
    """Return (dataset directory, manifest, record) of a shard; of a dataset's first training shard if path is one."""
    if path.is_dir() or path.name == MANIFEST_NAME:
        directory = path if path.is_dir() else path.parent
        manifest = load_manifest(directory)
        return directory, manifest, manifest.splits["train"][0]
    if not path.exists():
        raise ValueError(f"{path}: no such shard or dataset: give a .arrow file or a dataset's folder")
    directory = path.resolve().parent.parent
    manifest = load_manifest(directory)
    relative = path.resolve().relative_to(directory).with_suffix(".arrow").as_posix()
    for record in (record for split in SPLITS for record in manifest.splits[split]):
        if record.path == relative:
            return directory, manifest, record
    raise ValueError(f"{path}: not a shard of the dataset in {directory}: give one that its {MANIFEST_NAME} lists")


def describe_shard(directory: Path, shard: OpenShard, manifest: Manifest) -> str:
    """Return a shard's header."""
    record = shard.record
    files = f"{record.ranges[0].file}" + (f" and {len(record.ranges) - 1} more" if len(record.ranges) > 1 else "")
    sizes = f"{record.num_documents:,} documents, {record.num_tokens:,} tokens, {record.size_bytes:,} bytes"
    columns = ", ".join(f"{name} list<{dtype}>" for name, dtype in COLUMNS[record.token_storage].items())
    lines = [
        str(directory / record.path),
        f"columns    {columns}, doc uint64; source {record.source}, task {record.task}",
        f"rows       {sizes}",
        f"text       {record.text_bytes:,} bytes from {files}",
        f"ids        {record.min_id} to {record.max_id}, {record.num_unknown_tokens:,} unknown",
        describe_tokenizer(manifest),
        f"normalizer {manifest.normalizer or '(none)'}, SentencePiece {manifest.sentencepiece_version}",
        f"chunking   {manifest.chunking}",
        f"checksum   xxh3_128 {record.xxh3_128} verified",
    ]
    return "\n".join(lines)


def describe_row(shard: OpenShard, row: int, tokenizer: Tokenizer) -> str:
    """Return a document's length, text and first pieces, cut to a few lines."""
    ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist()
    pieces = " ".join(tokenizer.processor.id_to_piece(index) for index in ids[:NUM_PIECES_SHOWN])
    lines = [f"row {row}: {len(ids):,} tokens, from byte {shard.start_bytes[row]}"]
    lines += _fold_text(tokenizer.processor.decode(ids), NUM_TEXT_LINES)
    lines += ["  pieces:", *_fold_text(pieces, 2)]
    return "\n".join(lines)


def _fold_text(text: str, num_lines: int) -> list[str]:
    """Return the first lines of text, indented, without characters that could act on the terminal."""
    printable = "".join(character if character.isprintable() else "\ufffd" for character in text)
    # a character takes at least one cell: more than this never shows
    head = Text(printable[: LINE_CELLS * (num_lines + 1)])
    lines = [line.plain.rstrip() for line in head.wrap(Console(), LINE_CELLS)]
    shown = ["  " + line for line in lines[:num_lines]]
    if len(lines) > num_lines:
        shown[-1] += "..."
    return shown


def _run(arguments: Sequence[str] | None) -> None:
    parser = OneLineParser(prog="inspect_shard", description="Show what a dataset or one of its shards holds.")
    parser.add_argument("path", metavar="PATH", help="a shard (.arrow) or a dataset's folder")
    parser.add_argument("--rows", type=_parse_num_rows, default=3, metavar="N", help="rows to decode; default 3")
    parsed = parser.parse_args(arguments)
    path = Path(parsed.path)
    directory, manifest, record = find_shard(path)
    if path.is_dir() or path.name == MANIFEST_NAME:
        print(describe_dataset(directory, manifest), end="\n\n")
    shard = open_shard(directory, record, verify="checksum")
    tokenizer = load_tokenizer(directory / TOKENIZER_NAME)
    print(describe_shard(directory, shard, manifest))
    for row in range(min(parsed.rows, record.num_documents)):
        print()
        print(describe_row(shard, row, tokenizer))


def _parse_num_rows(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rows")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code (command_line.py lists them)."""
    return run_command(lambda: _run(arguments), "only read")


if __name__ == "__main__":
    sys.exit(main())
