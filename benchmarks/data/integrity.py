"""Part g: a file on disk is damaged; who notices, when, and does the message name the file?

Every implementation writes a small dataset by itself (preparers.py). Its largest file is then, in a copy, truncated by
a tenth, changed in eight bytes in the middle, removed, or exchanged for the same file of a dataset made of the same
documents in reverse.
A child process opens the copy and reads every token, once as its library does by default.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import hashlib
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import megatron, our_data
from benchmarks.data.prepare import run_once
from benchmarks.data.rounds import Absent, Row
from benchmarks.data.text import Text, make_text, read_documents

SMALL_BYTES = 2_000_000
DAMAGES = ("whole", "truncated", "flipped", "missing", "foreign")
READ_SECONDS = 60
LONGEST_MESSAGE = 200
FLIPPED_BYTES = 8


@dataclass(frozen=True)
class Reader:
    """How a dataset is opened, and all its tokens read after that; files says which of its files may be damaged."""

    open: Callable[[Path], Any]
    read: Callable[[Any], Iterator[Any]]
    files: str


def read_megatron() -> Reader:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    return Reader(lambda folder: IndexedDataset(str(folder / "text_text_document")), _items, "*.bin")


def read_datatrove() -> Reader:
    from datatrove.utils.dataset import DatatroveFolderDataset

    def open_folder(folder: Path) -> Any:
        return DatatroveFolderDataset(str(folder / "tokens"), seq_len=128, token_size=2)

    return Reader(open_folder, lambda dataset: (item["input_ids"] for item in _items(dataset)), "*.ds")


def read_datasets() -> Reader:
    import datasets

    def read(rows: Any) -> Iterator[Any]:
        return (row["tokens"] for row in rows)

    return Reader(lambda folder: datasets.Dataset.from_file(str(folder / "tokens.arrow")), read, "tokens.arrow")


def read_litdata() -> Reader:
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    def open_folder(folder: Path) -> Any:
        return litdata.StreamingDataset(str(folder), item_loader=TokensLoader(block_size=128))

    return Reader(open_folder, _items, "*.bin")


def read_mds() -> Reader:
    """With the hash that the writer left (preparers.py), asked for as its documentation says."""
    import streaming

    def open_folder(folder: Path) -> Any:
        return streaming.StreamingDataset(local=str(folder), batch_size=1, validate_hash="xxh3_64")

    return Reader(open_folder, lambda rows: (row["tokens"] for row in _items(rows)), "*.mds")


def _items(dataset: Any) -> Iterator[Any]:
    return (dataset[index] for index in range(len(dataset)))


def read_ours() -> Reader:
    return Reader(our_data.open_for_training, our_data.read_all, "train/*.arrow")


READERS: dict[str, Callable[[], Reader]] = {
    "ours": read_ours,
    "megatron": read_megatron,
    "mds": read_mds,
    "litdata": read_litdata,
    "datatrove": read_datatrove,
    "datasets": read_datasets,
}


def measure_integrity(text: Text, names: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """A row for each damage and implementation."""
    folder = options.scratch / "integrity"
    shutil.rmtree(folder, ignore_errors=True)
    small = make_text(text.plain, SMALL_BYTES, text.tokenizer, folder / "small")
    reversed_text = folder / "reversed.txt"
    reversed_text.write_text("\n\n".join(reversed(list(read_documents(small.plain)))), encoding="utf-8")
    other = make_text(reversed_text, SMALL_BYTES, text.tokenizer, folder / "other")
    for name in names:
        if name not in READERS:
            continue
        try:
            for corpus, target in ((small, folder / name / "whole"), (other, folder / name / "other")):
                run_once(name, 1, corpus, options)
                target.parent.mkdir(exist_ok=True)
                (options.scratch / "prepared" / "output").rename(target)
            if name == "megatron":
                megatron.import_from(options.megatron)
            reader = READERS[name]()
        except (Absent, ImportError) as error:
            yield Row("integrity", "whole", name, error=f"absent: {error}")
            continue
        except RuntimeError as error:
            yield Row("integrity", "whole", name, error=str(error)[-LONGEST_MESSAGE:])
            continue
        expected = None
        for damage in DAMAGES:
            damaged, name_of_file = copy_damaged(folder / name, damage, reader.files)
            outcome = read_in_child(reader, damaged)
            if damage == "whole":
                expected = outcome.get("digest")
            outcome["verdict"] = judge(outcome, expected, name_of_file)
            yield Row("integrity", damage, name, figures={key: outcome[key] for key in outcome if key != "digest"})


def copy_damaged(folder: Path, damage: str, files: str) -> tuple[Path, str]:
    """A copy of folder/whole, and the name of its file that was damaged."""
    copy = folder / damage if damage != "whole" else folder / "copy"
    shutil.copytree(folder / "whole", copy)
    path = max(copy.rglob(files), key=lambda found: (found.stat().st_size, str(found)))
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "truncated":
        path.write_bytes(content[: -len(content) // 10])
    elif damage == "flipped":
        flipped = bytes(255 - byte for byte in content[middle : middle + FLIPPED_BYTES])
        path.write_bytes(content[:middle] + flipped + content[middle + FLIPPED_BYTES :])
    elif damage == "missing":
        path.unlink()
    elif damage == "foreign":
        shutil.copy(max((folder / "other").rglob(files), key=lambda found: found.stat().st_size), path)
    return copy, path.name


def read_in_child(reader: Reader, folder: Path) -> dict[str, Any]:
    """What a process that opens the dataset and reads it comes to: a digest or a message, and at which stage."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_read, args=(reader, folder, theirs))
    process.start()
    theirs.close()
    outcome: dict[str, Any] = {"stage": "open"}
    try:
        while ours.poll(READ_SECONDS):
            outcome |= ours.recv()
        outcome["message"] = f"nothing for {READ_SECONDS} s"
    except EOFError:
        process.join()
        if process.exitcode and "message" not in outcome:
            outcome["message"] = f"the process ended with {process.exitcode}"
    if process.is_alive():
        process.kill()
    process.join()
    return outcome


def _read(reader: Reader, folder: Path, results: Connection) -> None:
    """The child's side."""
    try:
        dataset = reader.open(folder)
        results.send({"stage": "read"})
        digest = hashlib.sha256()
        for tokens in reader.read(dataset):
            digest.update(np.asarray(tokens).astype(np.int64).tobytes())
        results.send({"stage": "end", "digest": digest.hexdigest()})
    # whatever a library raises on a damaged file is the result
    except Exception as error:
        results.send({"message": f"{type(error).__name__}: {' '.join(str(error).split())}"})


def judge(outcome: dict[str, Any], expected: str | None, name_of_file: str) -> str:
    """One word or two on what happened."""
    message = outcome.pop("message", None)
    if message is None:
        return "same tokens" if outcome["digest"] == expected else "SILENT: wrong tokens"
    named = "named" if name_of_file in message else "not named"
    outcome["message"] = message[:LONGEST_MESSAGE]
    return f"error at {outcome['stage']}, {named}"
