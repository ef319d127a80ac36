"""Parts b and e: windows of 512 tokens gathered at random, and whole batches ready for MLM.

Peers hold the same tokens in their own format at the length that they want: documents one after another, cut into
runs of 512. ModernBERT's MDS holds pieces of documents with [CLS] and [SEP], which its packer puts together.

A gather call gives [64, 512] int64; its tokens all count. Of a batch for MLM those that are not padding count.

Used by: benchmarks/data/__main__.py. Tested by: tests/benchmarks/test_data.py.
"""

import argparse
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import megatron, our_data, our_preparation
from benchmarks.data.lift import lift_modernbert
from benchmarks.data.maskers import PROBABILITY, ROWS, TOKENS
from benchmarks.data.rounds import Call, Row, measure_case
from benchmarks.data.text import Text

Gather = Callable[[NDArray[np.int64]], NDArray[np.int64]]
NUM_INDEX_SETS = 64
MODERNBERT_BUFFER_BATCHES = 5  # its own default


def cycle_indices(num_windows: int) -> Iterator[NDArray[np.int64]]:
    """Random windows, the same for everybody with as many windows."""
    generator = np.random.default_rng(1)
    return itertools.cycle(generator.integers(0, num_windows, (NUM_INDEX_SETS, ROWS)))


def gather_call(num_windows: int, gather: Gather) -> Call:
    """A call that gathers other windows each time."""
    indices = cycle_indices(num_windows)
    assert gather(next(indices)).shape == (ROWS, TOKENS)

    def call() -> int:
        return gather(next(indices)).size

    return call


def gather_megatron(flat: NDArray[Any], folder: Path, options: argparse.Namespace) -> Call:
    """GPTDataset over an IndexedDataset, whose C++ helper must have been compiled; its sample is 512 and one more."""
    megatron.import_from(options.megatron)
    from megatron.core.datasets import gpt_dataset, indexed_dataset
    from megatron.core.datasets.utils import Split

    write_megatron(flat, folder, indexed_dataset)
    dataset = indexed_dataset.IndexedDataset(str(folder / "tokens"))
    config = gpt_dataset.GPTDatasetConfig(
        random_seed=1, sequence_length=TOKENS, path_to_cache=str(folder / "cache"), split="1",
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
        tokenizer=SimpleNamespace(vocab_size=len(flat), eod=2, pad=0, unique_identifiers={}),
    )  # fmt: skip
    config.token_dtype_code = None
    samples = gpt_dataset.GPTDataset(
        dataset, str(folder / "tokens"), np.arange(len(dataset), dtype=np.int32), None, Split.train, config
    )

    def gather(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([samples[int(index)]["tokens"].numpy() for index in indices])

    return gather_call(len(samples), gather)


def write_megatron(flat: NDArray[Any], folder: Path, indexed_dataset: Any) -> None:
    """The tokens as one document after another of a few thousand tokens."""
    folder.mkdir()
    builder = indexed_dataset.IndexedDatasetBuilder(str(folder / "tokens.bin"), dtype=np.uint16)
    for document in np.array_split(flat, max(1, len(flat) // 4096)):
        builder.add_document(document, [len(document)])
    builder.finalize(str(folder / "tokens.idx"))


def gather_litdata(flat: NDArray[Any], folder: Path) -> Call:
    """StreamingDataset with TokensLoader of 512 tokens."""
    import litdata
    import torch
    from litdata.streaming.item_loader import TokensLoader

    litdata.optimize(
        fn=functools.partial(_split_tensor, torch.from_numpy(flat.astype(np.int32))), inputs=[0],
        output_dir=str(folder), num_workers=1, chunk_bytes="64MB", item_loader=TokensLoader(),
    )  # fmt: skip
    dataset = litdata.StreamingDataset(str(folder), item_loader=TokensLoader(block_size=TOKENS))

    def gather(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([np.asarray(dataset[int(index)]) for index in indices]).astype(np.int64)

    return gather_call(len(dataset), gather)


def _split_tensor(tokens: Any, _: int) -> Iterator[Any]:
    yield from tokens.split(4096)


def gather_mds(flat: NDArray[Any], folder: Path) -> Call:
    """StreamingDataset over a local folder, a sample of 512 tokens each."""
    import streaming

    with streaming.MDSWriter(out=str(folder), columns={"tokens": "ndarray:uint16"}) as writer:
        for window in cut_windows(flat):
            writer.write({"tokens": window.astype(np.uint16)})
    dataset = streaming.StreamingDataset(local=str(folder), batch_size=ROWS)

    def gather(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack([dataset[int(index)]["tokens"] for index in indices]).astype(np.int64)

    return gather_call(len(dataset), gather)


def gather_datasets(flat: NDArray[Any], folder: Path) -> Call:
    """A saved Dataset of 512 tokens a row, int32, asked for a list of rows with the numpy format."""
    rows = save_datasets(flat, folder).with_format("numpy")

    def gather(indices: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.asarray(rows[indices]["input_ids"]).astype(np.int64)

    return gather_call(len(rows), gather)


def save_datasets(flat: NDArray[Any], folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"input_ids": datasets.List(datasets.Value("int32"))})
    rows = datasets.Dataset.from_dict({"input_ids": cut_windows(flat).astype(np.int32)}, features=features)
    rows.save_to_disk(str(folder))
    return datasets.load_from_disk(str(folder))


def cut_windows(flat: NDArray[Any]) -> NDArray[Any]:
    """[windows, 512], the tail dropped."""
    num_windows = len(flat) // TOKENS
    return flat[: num_windows * TOKENS].reshape(num_windows, TOKENS)


def batches_datasets(flat: NDArray[Any], folder: Path, text: Text) -> Call:
    """A shuffled Dataset of 512 tokens a row, a DataLoader without workers, DataCollatorForLanguageModeling."""
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer, DataCollatorForLanguageModeling

    rows = save_datasets(flat, folder).shuffle(seed=1)
    collator = DataCollatorForLanguageModeling(
        AutoTokenizer.from_pretrained(str(text.huggingface)), mlm_probability=PROBABILITY
    )
    loader: Any = DataLoader(rows, batch_size=ROWS, collate_fn=collator, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def call() -> int:
        return int(next(batches)["labels"].numel())

    return call


def batches_modernbert(
    flat: NDArray[Any], offsets: NDArray[np.int64], folder: Path, text: Text, options: argparse.Namespace
) -> Call:
    """NoStreamingDataset over MDS, a DataLoader in random order without workers, GreedyBestFitSequencePacker."""
    import streaming
    from torch.utils.data import DataLoader

    lifted = lift_modernbert(options.modernbert)
    special = our_preparation.special_ids(text.tokenizer)
    with streaming.MDSWriter(out=str(folder), columns={"input_ids": "ndarray:uint16"}) as writer:
        for piece in cut_pieces(flat, offsets):
            writer.write({"input_ids": np.concatenate([[special.cls], piece, [special.sep]]).astype(np.uint16)})
    dataset = lifted.NoStreamingDataset(local=str(folder), split=None, max_seq_len=TOKENS, pad_sequences=False)
    loader: Any = DataLoader(dataset, batch_size=ROWS, shuffle=True, collate_fn=lambda rows: rows)
    packer = lifted.GreedyBestFitSequencePacker.from_composer(
        loader, batch_size=ROWS, micro_batch_size=1, max_seq_len=TOKENS, pad_token_id=special.pad,
        buffer_size=MODERNBERT_BUFFER_BATCHES * ROWS, mask_token_id=special.mask, mask_prob=PROBABILITY,
    )  # fmt: skip
    batches = itertools.chain.from_iterable(itertools.repeat(packer))

    def call() -> int:
        return int(next(batches)["attention_mask"].sum())

    return call


def cut_pieces(flat: NDArray[Any], offsets: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    """Each document in pieces that leave room for [CLS] and [SEP]."""
    for start, stop in itertools.pairwise(offsets.tolist()):
        for first in range(start, stop, TOKENS - 2):
            yield flat[first : min(stop, first + TOKENS - 2)]


def measure_gather(dataset: Path, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of part b."""
    flat, _ = our_data.training_tokens(dataset)
    makers: dict[str, Callable[[], Call]] = {
        "ours": functools.partial(our_data.gather_call, dataset),
        "litdata": functools.partial(gather_litdata, flat, folder / "litdata"),
        "mds": functools.partial(gather_mds, flat, folder / "mds"),
        "datasets": functools.partial(gather_datasets, flat, folder / "datasets"),
    }
    if options.megatron is not None:
        makers["megatron"] = functools.partial(gather_megatron, flat, folder / "megatron", options)
    yield from measure_case("gather", f"[{ROWS}, {TOKENS}]", makers, options.repeats)


def measure_batches(dataset: Path, text: Text, folder: Path, options: argparse.Namespace) -> Iterator[Row]:
    """Rows of part e."""
    flat, offsets = our_data.training_tokens(dataset)
    makers: dict[str, Callable[[], Call]] = {
        "ours": functools.partial(our_data.batch_call, dataset, "token"),
        "ours_whole_word": functools.partial(our_data.batch_call, dataset, "word"),
        "datasets": functools.partial(batches_datasets, flat, folder / "datasets_mlm", text),
    }
    if options.modernbert is not None:
        makers["modernbert"] = functools.partial(
            batches_modernbert, flat, offsets, folder / "modernbert", text, options
        )
    yield from measure_case("batches", f"[{ROWS}, {TOKENS}]", makers, options.repeats)
