"""All that the data benchmark knows of this project's way from text to shards; from shards to batches: our_data.py.

The trainer is imported where it is called: the processes that measure the memory of preparation must not carry it.

Used by: benchmarks/data/. Tested by: tests/benchmarks/test_data.py. Not here: rivals, measuring.
"""

import os
import sys
from pathlib import Path

from disentangled.data_prep import build_corpus
from disentangled.data_prep.shard_schema import MANIFEST_NAME, SPLITS, SpecialIds, load_manifest
from disentangled.data_prep.tokenizer import load_tokenizer

# what a base model has, where the text supports it; the demo's sizes below
MANY_PIECES, MANY_PIECES_BYTES = 32_000, 16_000_000
# build_corpus cuts its input into units of twice as many bytes as a shard holds tokens
UNIT_BYTES_PER_TOKEN = 2
MPIRUN = Path(sys.executable).parent / "mpirun"


def write_default_text(path: Path) -> None:
    """English that every Python carries."""
    from disentangled.trainer.demo import write_python_english

    write_python_english(path)


def train_tokenizer(text: Path, folder: Path) -> bytes:
    """The content of an spm.model for the text."""
    from disentangled.trainer.demo import pieces_for

    many = text.stat().st_size >= MANY_PIECES_BYTES
    num_pieces = MANY_PIECES if many else pieces_for(text)
    build(text, folder, ["--train-tokenizer", "--vocab-size", str(num_pieces)])
    return (folder / "spm.model").read_bytes()


def special_ids(model: Path) -> SpecialIds:
    """Of a tokenizer."""
    return load_tokenizer(model).special_ids


def write_huggingface_tokenizer(model: bytes, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from disentangled.trainer.hf_tokenizer import write_tokenizer_files

    (folder / "spm.model").write_bytes(model)
    write_tokenizer_files(folder, model, special_ids(folder / "spm.model"), sys.maxsize)


def build(text: Path, output: Path, options: list[str]) -> None:
    """Run build_corpus in this process, or as this rank of an MPI job."""
    code = build_corpus.main(["--input", str(text), "--output", str(output), *options])
    if code:
        raise RuntimeError(f"build_corpus ended with exit code {code}, see above")


def prepare(text: Path, model: Path, output: Path, num_units: int | None, in_24_bits: bool = False) -> None:
    """Raw file to shards. num_units: how many units of work the text is cut into; None: as large as by default.
    in_24_bits: ids as of vocabularies above 65,535."""
    options = ["--tokenizer", str(model), *(["--token-storage", "uint24"] if in_24_bits else [])]
    if num_units is not None:
        options += ["--shard-tokens", str(-(-text.stat().st_size // (num_units * UNIT_BYTES_PER_TOKEN)))]
    build(text, output, options)


def launcher(num_workers: int) -> list[str]:
    """What goes before `python` for so many workers: nothing for one, mpirun with a coordinator besides for more."""
    if num_workers == 1:
        return []
    if not MPIRUN.exists():
        raise ModuleNotFoundError(f"no mpirun beside {sys.executable}")
    # on one machine; Open MPI looks for networks for a second otherwise
    one_machine = ["--mca", "btl", "self,sm"]
    return [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", *one_machine, "-n", str(num_workers + 1)]


def rank() -> int:
    """Of this process among those that the launcher started; 0 without one, and it speaks for all."""
    return int(os.environ.get("OMPI_COMM_WORLD_RANK", "0"))


def count_written(output: Path) -> tuple[int, int]:
    """(bytes of all shards, tokens in them)."""
    manifest = load_manifest(output)
    records = [record for split in SPLITS for record in manifest.splits[split]]
    return sum(record.size_bytes for record in records), sum(record.num_tokens for record in records)


def shard_hashes(output: Path) -> dict[str, str]:
    """sha256 of every shard by its path."""
    manifest = load_manifest(output)
    return {record.path: record.sha256 for split in SPLITS for record in manifest.splits[split]}


def has_shards(output: Path) -> bool:
    """Whether a build, finished or not, has written any."""
    return any(output.glob("train/*.arrow"))


def is_finished(output: Path) -> bool:
    """Whether a build has ended."""
    return (output / MANIFEST_NAME).exists()
