"""How each implementation turns raw text into token files: ours, bare SentencePiece, and the peers.

A preparer's load() imports its library, which is not timed, and gives run(text, output, num_workers), which is, and
count(output), (bytes, tokens) of what it wrote. Peers that read JSON lines get the text as such, ready made. Where a
project supplies no way from SentencePiece to its files (MDS, litdata, datasets with SentencePiece), the driver here
calls the tokenizer in batches, as we do.

Used by: benchmarks/data/prepare_child.py. Not here: timing (prepare.py).
"""

import argparse
import functools
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from benchmarks.data import megatron, our_preparation
from benchmarks.data.text import Text, batch_documents, read_documents, read_json_lines

Run = Callable[[Text, Path, int], None]
Count = Callable[[Path], tuple[int, int]]
TOKEN_BYTES = 2  # the benchmark's vocabularies fit uint16
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Loaded:
    """An imported implementation."""

    run: Run
    count: Count


def load_processor(model: str) -> spm.SentencePieceProcessor:
    return spm.SentencePieceProcessor(model_file=model)


def encode_batch(processor: spm.SentencePieceProcessor, documents: list[str]) -> list[Any]:
    return processor.encode(documents, num_threads=1, return_type="numpy")


def encode_part(model: str, part: str) -> Iterator[Any]:
    """uint16 ids of each document of a .jsonl."""
    processor = load_processor(model)
    for batch in batch_documents(read_json_lines(Path(part))):
        for ids in encode_batch(processor, batch):
            yield ids.astype(np.uint16)


def folder_bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern))


def load_ours() -> Loaded:
    """build_corpus as a user calls it; NUM_UNITS units, so that two workers share the text evenly."""

    def run(text: Text, output: Path, num_workers: int) -> None:
        our_preparation.prepare(text.plain, text.tokenizer, output, len(text.parts))

    return Loaded(run, our_preparation.count_written)


def load_ours_default(in_24_bits: bool = False) -> Loaded:
    """build_corpus with the range of work it has by default, for the memory of a worker."""

    def run(text: Text, output: Path, num_workers: int) -> None:
        our_preparation.prepare(text.plain, text.tokenizer, output, None, in_24_bits)

    return Loaded(run, our_preparation.count_written)


def load_bare() -> Loaded:
    """Nothing but sp.encode on documents in memory, in batches: the ceiling. It writes the number of tokens only."""

    def run(text: Text, output: Path, num_workers: int) -> None:
        processor = load_processor(str(text.tokenizer))
        # sums as they come, like a writer that keeps nothing
        num_tokens = sum(
            sum(map(len, encode_batch(processor, batch))) for batch in batch_documents(read_documents(text.plain))
        )
        output.mkdir()
        (output / "num_tokens").write_text(str(num_tokens))

    return Loaded(run, lambda output: (0, int((output / "num_tokens").read_text())))


def load_megatron(source: Path) -> Loaded:
    """tools/preprocess_data.py of a clone."""
    megatron.import_from(source)
    spec = importlib.util.spec_from_file_location("megatron_preprocess", source / "tools" / "preprocess_data.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["megatron_preprocess"] = module
    spec.loader.exec_module(module)

    def run(text: Text, output: Path, num_workers: int) -> None:
        output.mkdir()
        sys.argv = [
            "preprocess_data.py", "--input", str(text.json_lines), "--output-prefix", str(output / "text"),
            "--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(text.tokenizer),
            "--workers", str(num_workers), "--log-interval", "1000000",
        ]  # fmt: skip
        module.main()

    def count(output: Path) -> tuple[int, int]:
        return folder_bytes(output, "*.bin") + folder_bytes(output, "*.idx"), (
            folder_bytes(output, "*.bin") // TOKEN_BYTES
        )

    return Loaded(run, count)


def load_datatrove() -> Loaded:
    """Its reader of JSON lines and its DocumentTokenizer, which takes the tokenizers library's Unigram only."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    def run(text: Text, output: Path, num_workers: int) -> None:
        tokenize = DocumentTokenizer(
            output_folder=str(output / "tokens"),
            tokenizer_name_or_path=str(text.huggingface / "tokenizer.json"),
            eos_token=None,
            shuffle_documents=False,
        )
        LocalPipelineExecutor(
            pipeline=[JsonlReader(str(text.parts[0].parent)), tokenize],
            tasks=num_workers,
            workers=num_workers,
            logging_dir=str(output / "log"),
        ).run()

    def count(output: Path) -> tuple[int, int]:
        index_bytes = folder_bytes(output / "tokens", "*.ds.index")
        return folder_bytes(output / "tokens", "*.ds") + index_bytes, (
            folder_bytes(output / "tokens", "*.ds") // TOKEN_BYTES
        )

    return Loaded(run, count)


def load_datasets(with_sentencepiece: bool) -> Loaded:
    """load_dataset("json") and map in batches, with the tokenizers library as is usual, or with SentencePiece."""
    import datasets

    importlib.import_module("tokenizers")  # now, so that it is not timed
    datasets.disable_progress_bars()

    def run(text: Text, output: Path, num_workers: int) -> None:
        output.mkdir()
        rows = datasets.load_dataset(
            "json", data_files=[str(path) for path in text.parts], split="train", cache_dir=str(output / "cache"),
            num_proc=num_workers if num_workers > 1 else None,
        )  # fmt: skip
        if with_sentencepiece:
            encode = functools.partial(_encode_column_sentencepiece, str(text.tokenizer))
        else:
            encode = functools.partial(_encode_column_tokenizers, str(text.huggingface / "tokenizer.json"))
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        rows.map(
            encode, batched=True, remove_columns=["text"], num_proc=num_workers if num_workers > 1 else None,
            cache_file_name=str(output / "tokens.arrow"),
        )  # fmt: skip

    def count(output: Path) -> tuple[int, int]:
        files = sorted(output.glob("tokens*.arrow"))
        num_tokens = sum(
            len(chunk.values)
            for file in files
            for chunk in datasets.Dataset.from_file(str(file)).data.column("tokens").chunks
        )
        return folder_bytes(output, "tokens*.arrow"), num_tokens

    return Loaded(run, count)


@functools.lru_cache(maxsize=1)
def _cached_processor(model: str) -> spm.SentencePieceProcessor:
    return load_processor(model)


@functools.lru_cache(maxsize=1)
def _cached_tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)


def _encode_column_sentencepiece(model: str, batch: dict[str, list[str]]) -> dict[str, Any]:
    return {"tokens": encode_batch(_cached_processor(model), batch["text"])}


def _encode_column_tokenizers(path: str, batch: dict[str, list[str]]) -> dict[str, Any]:
    encoded = _cached_tokenizer(path).encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"tokens": [document.ids for document in encoded]}


def load_litdata() -> Loaded:
    """litdata.optimize with its TokensLoader."""
    import litdata
    from litdata.streaming.item_loader import TokensLoader

    def run(text: Text, output: Path, num_workers: int) -> None:
        litdata.optimize(
            fn=functools.partial(_litdata_tokens, str(text.tokenizer)),
            inputs=[str(path) for path in text.parts],
            output_dir=str(output),
            num_workers=num_workers,
            chunk_bytes="64MB",
            item_loader=TokensLoader(),
        )

    def count(output: Path) -> tuple[int, int]:
        # a chunk's dim is its number of tokens
        chunks = json.loads((output / "index.json").read_text("utf-8"))["chunks"]
        return folder_bytes(output, "*.bin"), sum(chunk["dim"] for chunk in chunks)

    return Loaded(run, count)


def _litdata_tokens(model: str, part: str) -> Iterator[Any]:
    import torch

    for ids in encode_part(model, part):
        yield torch.from_numpy(ids)


def load_mds() -> Loaded:
    """A pool of MDSWriters, a folder of shards for each part, and merge_index."""
    from streaming.base.util import merge_index

    def run(text: Text, output: Path, num_workers: int) -> None:
        output.mkdir()
        tasks = [(str(text.tokenizer), str(part), str(output / part.stem)) for part in text.parts]
        with multiprocessing.get_context("fork").Pool(num_workers) as pool:
            pool.starmap(_write_mds, tasks, chunksize=1)
        merge_index(str(output))

    def count(output: Path) -> tuple[int, int]:
        return folder_bytes(output, "*.mds"), sum(int(path.read_text()) for path in output.glob("*/num_tokens"))

    return Loaded(run, count)


def _write_mds(model: str, part: str, output: str) -> None:
    from streaming import MDSWriter

    num_tokens = 0
    with MDSWriter(
        out=output, columns={"tokens": "ndarray:uint16"}, size_limit=64 * MEBIBYTE, hashes=["xxh3_64"]
    ) as writer:
        for ids in encode_part(model, part):
            writer.write({"tokens": ids})
            num_tokens += len(ids)
    (Path(output) / "num_tokens").write_text(str(num_tokens))


# In the order in which they are run within a repetition, and of the table.
def preparers(options: argparse.Namespace) -> dict[str, Callable[[], Loaded]]:
    """What can be run: Megatron only where its source is named."""
    found: dict[str, Callable[[], Loaded]] = {
        "ours": load_ours,
        "bare": load_bare,
        "mds": load_mds,
        "litdata": load_litdata,
        "datasets": functools.partial(load_datasets, False),
        "datasets_sentencepiece": functools.partial(load_datasets, True),
        "datatrove": load_datatrove,
        "ours_default_range": load_ours_default,
        "ours_24_bits": functools.partial(load_ours_default, True),
    }
    if options.megatron is not None:
        found["megatron"] = functools.partial(load_megatron, options.megatron)
    return found
