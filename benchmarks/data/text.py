"""The text that everybody gets: one .txt for ours, the same documents as JSON lines for those that read these.

A document is a block of lines between blank lines. The tokenizer is trained on the text by our own command, unless one
is given; Hugging Face's form of it comes from the same file.

Used by: benchmarks/data/. Tested by: tests/benchmarks/test_data.py.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.data import our_preparation

# 8: both of two workers have work until shortly before the end, and each part is long enough for full speed
NUM_PARTS = 8
# enough text at once for SentencePiece to run at full speed
BATCH_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class Text:
    """Where the text lies in each form, and the tokenizer in each form.

    parts holds the documents of json_lines in NUM_PARTS files, for those that give each worker files of its own.
    """

    folder: Path
    num_documents: int
    num_bytes: int

    @property
    def plain(self) -> Path:
        return self.folder / "text.txt"

    @property
    def json_lines(self) -> Path:
        return self.folder / "text.jsonl"

    @property
    def parts(self) -> list[Path]:
        return [self.folder / "parts" / f"{number}.jsonl" for number in range(NUM_PARTS)]

    @property
    def tokenizer(self) -> Path:
        return self.folder / "spm.model"

    @property
    def huggingface(self) -> Path:
        """The folder of tokenizer.json."""
        return self.folder / "huggingface"


def make_text(source: Path | None, num_bytes: int, tokenizer: Path | None, folder: Path) -> Text:
    """Take the first documents of source, or of Python's own English for None, at least num_bytes where there are."""
    folder.mkdir(parents=True)
    if source is None:
        source = folder / "python_english.txt"
        our_preparation.write_default_text(source)
    text = Text(folder, *_write_documents(source, num_bytes, folder / "text.txt"))
    documents = list(read_documents(text.plain))
    _write_json_lines(text.json_lines, documents)
    (folder / "parts").mkdir()
    share = -(-len(documents) // NUM_PARTS)
    for number, path in enumerate(text.parts):
        _write_json_lines(path, documents[number * share : (number + 1) * share])
    model = tokenizer.read_bytes() if tokenizer else our_preparation.train_tokenizer(text.plain, folder / "trained")
    text.tokenizer.write_bytes(model)
    text.huggingface.mkdir()
    our_preparation.write_huggingface_tokenizer(model, text.huggingface)
    return text


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a .txt."""
    for block in re.split(r"\n[ \t]*\n", path.read_text("utf-8")):
        if document := block.strip("\n"):
            yield document


def read_json_lines(path: Path) -> Iterator[str]:
    """The documents of a .jsonl."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)["text"]


def batch_documents(documents: Iterator[str]) -> Iterator[list[str]]:
    """Lists of about BATCH_CHARACTERS."""
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _write_documents(source: Path, num_bytes: int, target: Path) -> tuple[int, int]:
    """Returns the numbers of documents and bytes written."""
    num_documents = 0
    with target.open("w", encoding="utf-8", newline="\n") as file:
        for document in read_documents(source):
            if file.tell() >= num_bytes:
                break
            file.write(("\n\n" if num_documents else "") + document)
            num_documents += 1
        file.write("\n")
    return num_documents, target.stat().st_size


def _write_json_lines(path: Path, documents: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document}, ensure_ascii=False) + "\n")
