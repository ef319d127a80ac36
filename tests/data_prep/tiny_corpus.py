"""Made-up text, small enough to train a tokenizer on in a fraction of a second, and ways to write it to files."""

import gzip
import json
import lzma
import random
from pathlib import Path

import pyarrow as pa

from disentangled.data_prep.split import split_hash, validation_threshold

# enough pieces for the 256 bytes, the specials, the letters and some words
NUM_PIECES = 400


def make_documents(num_documents: int = 60, seed: int = 0) -> list[str]:
    """Return documents of one to five lines of words drawn from a Zipf-like vocabulary, some with wide characters."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 8))) for _ in range(300)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    documents = []
    for index in range(num_documents):
        lines = [" ".join(draw.choices(words, weights, k=draw.randint(3, 30))) for _ in range(draw.randint(1, 5))]
        if index % 7 == 0:
            lines.append("ünï — 東京 \U0001f600 end")
        documents.append("\n".join(lines))
    return documents


def write_txt(path: Path, documents: list[str]) -> Path:
    """Write documents with a blank line between them, compressed as the name says."""
    return write_bytes(path, "\n\n".join(documents).encode() + b"\n")


def write_jsonl(path: Path, documents: list[str], field: str = "text") -> Path:
    """Write one JSON object a line, compressed as the name says."""
    lines = [json.dumps({"id": index, field: text}) + "\n" for index, text in enumerate(documents)]
    return write_bytes(path, "".join(lines).encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write content, compressed as the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(content, path.suffix))
    return path


def compress(content: bytes, suffix: str) -> bytes:
    """Return content as one gzip member, zstd frame or xz stream, or as it is."""
    if suffix == ".xz":
        return lzma.compress(content, preset=0)
    if suffix == ".gz":
        return gzip.compress(content, mtime=0)
    if suffix == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return content


def is_validation(text: str, seed: int, fraction: float) -> bool:
    """Return the side of the split on which a document falls."""
    return split_hash(text.encode(), seed) < validation_threshold(fraction)


def read_tree(directory: Path) -> dict[str, bytes]:
    """Return the content of every file below a directory by relative path."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
