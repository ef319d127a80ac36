"""All that the data benchmark knows of this project's way from shards to batches: the one file to change when the
interface of trainer/ does. From text to shards: our_preparation.py.

Used by: benchmarks/data/. Tested by: tests/benchmarks/test_data.py. Not here: rivals, measuring.
"""

import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disentangled.data_prep.shard_schema import load_manifest, open_shard
from disentangled.data_prep.tokenizer import load_tokenizer
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.dataset import Dataset, open_dataset, tokenizer_path
from disentangled.trainer.loader import BatchLoader, Slicing
from disentangled.trainer.masking import MaskingRule, MaskingUnit, choose_masked, shown_ids
from disentangled.trainer.mixture import NUM_SLOTS, MixtureSchedule, SourceSize, mixture_shares
from disentangled.trainer.order import SampleOrder, order_of_sources
from disentangled.trainer.packing import pack_windows
from disentangled.trainer.sections import BatchSection
from disentangled.trainer.shards import WindowStore
from disentangled.trainer.window_plan import join_windows
from disentangled.trainer.word_starts import word_start_table

TESTS = tuple(f"tests/trainer/test_{name}.py" for name in ("shards", "packing", "order", "masking", "batch", "mixture"))
ROWS, SEQUENCE_TOKENS = 64, 512
NUM_INDEX_SETS = 64  # other windows in every call
IGNORED_LABEL = -100
MINIMUM_PIECE_TOKENS = 8


def open_for_training(dataset: Path) -> WindowStore:
    """The training split as a run opens it; a shard is verified when it is first read."""
    return open_windows(open_dataset(str(dataset)))


def open_windows(dataset: Dataset) -> WindowStore:
    return WindowStore(dataset, "train", SEQUENCE_TOKENS, MINIMUM_PIECE_TOKENS)


def read_all(store: WindowStore) -> Iterator[Any]:
    """The tokens of every window."""
    for first in range(0, store.num_windows, ROWS):
        yield copy_windows(store, np.arange(first, min(store.num_windows, first + ROWS)))[0]


def copy_windows(store: WindowStore, windows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """[windows, 512] int64, each row's pieces one after another from its left, and how many tokens these are."""
    pieces = store.pieces(windows)
    ends = np.cumsum(pieces.length)
    of_row = np.bincount(pieces.row, weights=pieces.length, minlength=windows.size).astype(np.int64)
    in_row = ends - pieces.length - (np.cumsum(of_row) - of_row)[pieces.row]
    rows = np.zeros((windows.size, SEQUENCE_TOKENS), np.int64)
    store.copy_tokens(pieces, rows.ravel(), pieces.row * SEQUENCE_TOKENS + in_row)
    return rows, int(ends[-1])


def training_tokens(dataset: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """All tokens of the training split one after another, and where documents begin and end."""
    shards = [open_shard(dataset, record) for record in load_manifest(dataset).splits["train"]]
    lengths = np.concatenate([np.diff(shard.offsets) for shard in shards])
    return np.concatenate([shard.tokens[:] for shard in shards]), np.concatenate([[0], lengths.cumsum()])


def gather_call(dataset: Path) -> Callable[[], int]:
    """Random windows of the training split."""
    store = open_for_training(dataset)
    choices = np.random.default_rng(1).integers(0, store.num_windows, (NUM_INDEX_SETS, ROWS))
    turn = itertools.cycle(choices)
    return lambda: copy_windows(store, next(turn))[1]


def masker(batches: Any, unit: MaskingUnit) -> Callable[[], int]:
    """Targets and corrupted ids of [64, 512] tokens; the words are looked up as part of the work."""
    model = batches.text.tokenizer
    tokenizer = load_tokenizer(model)
    special, vocab_size = tokenizer.special_ids, tokenizer.vocab_size
    word_starts = word_start_table(model, vocab_size) if unit == "word" else None
    is_ordinary = np.ones(vocab_size, dtype=bool)
    is_ordinary[[special.pad, special.cls, special.sep, special.unk, special.mask]] = False
    rule, pieces = masking_rule(unit), (special.unk + 1, special.mask)
    samples = (np.arange(first, first + ROWS) for first in itertools.count(step=ROWS))
    turn = itertools.cycle(batches.ids)

    def call() -> int:
        ids, sample = next(turn), next(samples)
        starts = None if word_starts is None else word_starts[ids]
        chosen = choose_masked(is_ordinary[ids], starts, sample, rule, seed=1, stream=1)
        labels = np.where(chosen, ids, IGNORED_LABEL)
        flat = np.flatnonzero(chosen)
        row, place = np.divmod(flat, SEQUENCE_TOKENS)
        corrupted = ids.copy()
        corrupted.ravel()[flat] = shown_ids(
            ids.ravel()[flat], row, place, sample, rule, mask_id=special.mask, pieces=pieces, seed=1, stream=1
        )
        return int(labels.size)

    return call


def masking_rule(unit: MaskingUnit) -> MaskingRule:
    """15 %, of which 80 % become [MASK] and 10 % another piece, as everybody's."""
    return MaskingRule(probability=0.15, unit=unit, mask_share=0.8, random_share=0.1)


def make_builder(dataset: Path, unit: MaskingUnit, micro_sequences: int = ROWS) -> BatchBuilder:
    """What a run builds its batches with."""
    opened = open_dataset(str(dataset))
    store, manifest = open_windows(opened), opened.manifest
    word_starts = word_start_table(tokenizer_path(opened), manifest.vocab_size) if unit == "word" else None
    return BatchBuilder(
        store, order_of_sources(store.sources(), 1.0, 0.0, 1, 1), manifest.special_ids, manifest.vocab_size,
        sequence_length=SEQUENCE_TOKENS, micro_sequences=micro_sequences, masking=masking_rule(unit), seed=1,
        pieces=(manifest.special_ids.unk + 1, manifest.num_pieces), word_starts=word_starts,
    )  # fmt: skip


def batch_call(dataset: Path, unit: MaskingUnit) -> Callable[[], int]:
    """Whole batches in the run's order."""
    builder = make_builder(dataset, unit)
    firsts = itertools.count(step=ROWS)

    def call() -> int:
        first = next(firsts)
        num_live: int = builder.build(np.arange(first, first + ROWS)).num_live
        return num_live

    return call


def plan_rows(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], int]:
    """(row, first token, tokens) of every piece in the order of rows, and the bytes that a kept plan takes."""
    packed = pack_windows(offsets, SEQUENCE_TOKENS, MINIMUM_PIECE_TOKENS)
    plan = join_windows([packed], SEQUENCE_TOKENS)
    window = np.repeat(np.arange(packed.num_windows), np.diff(packed.first_piece))
    kept_bytes = plan.first_piece.nbytes + plan.start.nbytes + plan.length.nbytes
    return window, packed.start, packed.length, kept_bytes


def open_and_build(dataset: Path, sample: int) -> Callable[[], Any]:
    """Opening the training split as a run that goes on does, with the plan of rows kept; then its batch at a sample."""
    open_for_training(dataset)
    return lambda: make_builder(dataset, "token").build(np.arange(sample, sample + ROWS))


def build_at(dataset: Path, sample: int) -> Callable[[], Any]:
    """The batch at a sample of a split that is open."""
    builder = make_builder(dataset, "token")
    return lambda: builder.build(np.arange(sample, sample + ROWS))


def order_at(sample: int, num_windows: int) -> Callable[[], Any]:
    """The windows of a batch at a sample, among so many windows."""
    return lambda: SampleOrder([np.array([num_windows])], None, 1).windows(np.arange(sample, sample + ROWS))


def compare_ways(dataset: Path) -> dict[str, int]:
    """Two steps of 64 samples, shared out over ranks, accumulation and worker processes, and resumed: how many ways
    there were, and how many gave every sample the ids, documents and targets that one rank at a stretch gives it."""
    ways = [(ranks, accumulation, 0, 2) for ranks in (1, 2, 4, 8) for accumulation in (1, 2, 4)]
    ways += [(ranks, 2, workers, 2) for ranks in (1, 4) for workers in (1, 4)]
    ways += [(1, 1, 0, first) for first in (1, 3)]
    expected = read_steps(dataset, 1, 1, 0, 0, 5)
    equal = 0
    for ranks, accumulation, workers, first in ways:
        wanted = range(first * ROWS, (first + 2) * ROWS)
        found = read_steps(dataset, ranks, accumulation, workers, first, first + 2)
        equal += found == {sample: expected[sample] for sample in wanted}
    return {"num_ways": len(ways), "num_equal": equal}


def read_steps(
    dataset: Path, ranks: int, accumulation: int, workers: int, first: int, stop: int
) -> dict[int, list[tuple[int, bytes, bytes]]]:
    """Of each sample, for each of its documents: the place in the row, the ids, what is masked and what is shown."""
    micro = ROWS // ranks // accumulation
    found: dict[int, list[tuple[int, bytes, bytes]]] = {}
    # torch thinks that 4 workers are many for the machine
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
    for rank in range(ranks):
        builder = make_builder(dataset, "token", micro)
        loader = BatchLoader(builder, Slicing(BatchSection(ROWS, micro), rank, ranks), workers)
        for batch in itertools.chain.from_iterable(loader.steps(first, stop)):
            ids = batch.original_ids.numpy()
            shown = np.full(ids.size, IGNORED_LABEL)
            shown[batch.masked_rows.numpy()] = batch.masked_ids.numpy()
            bounds = itertools.pairwise(batch.cu_seqlens.tolist())
            places = zip(batch.document_sample.tolist(), batch.document_first_token.tolist(), bounds, strict=True)
            for sample, place, (start, end) in places:
                document = (place, ids[start:end].tobytes(), shown[start:end].tobytes())
                found.setdefault(sample, []).append(document)
    return found


def mixture_error() -> dict[str, Any]:
    """100 sources of 1 to 1e6 thousand tokens at alpha 0.3: the largest difference between a source's share of 65,536
    samples in a row, from many starts, and what it should be."""
    generator = np.random.default_rng(1)
    sizes = np.exp(generator.uniform(np.log(1e6), np.log(1e12), 100)).astype(np.int64)
    sources = [SourceSize(str(index), 1.0, int(size), int(size // 512)) for index, size in enumerate(sizes)]
    shares = mixture_shares(sources, alpha=0.3)
    schedule = MixtureSchedule(shares)
    starts = generator.integers(0, 10**12, 16)
    counts = [
        np.bincount(schedule.locate(np.arange(start, start + NUM_SLOTS))[0], minlength=len(sources)) for start in starts
    ]
    return {"largest_error": float(np.abs(np.array(counts) / NUM_SLOTS - shares).max()), "num_sources": len(sources)}
