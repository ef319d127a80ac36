from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.kernels.counter_rng import Stream
from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.masking import MaskingRule
from disentangled.trainer.order import SampleOrder
from disentangled.trainer.shards import Pieces

PAD, CLS, SEP, UNK, MASK = 0, 1, 2, 3, 50
VOCAB_SIZE = 64
SPECIAL = SpecialIds(PAD, CLS, SEP, UNK, MASK)
LENGTH = 10  # tokens of a row
NAMES = ("original_ids", "cu_seqlens", "document_sample", "document_first_token", "masked_rows", "masked_ids")


class TypedStore:
    """Windows typed out by hand, behind what BatchBuilder asks of WindowStore: every piece is a shard of its own."""

    def __init__(self, windows: list[list[list[int]]]) -> None:
        self._windows = windows
        self.num_windows = len(windows)

    def pieces(self, windows: NDArray[np.int64]) -> Pieces:
        found = [(row, len(piece)) for row, window in enumerate(windows) for piece in self._windows[window]]
        rows, lengths = np.array(found, dtype=np.int64).reshape(-1, 2).T
        self._asked = [piece for window in windows for piece in self._windows[window]]
        return Pieces(rows, np.arange(rows.size), np.zeros_like(rows), lengths)

    def copy_tokens(self, pieces: Pieces, out: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        for piece, place in zip(self._asked, places.tolist(), strict=True):
            out[place : place + len(piece)] = piece


# window: its pieces. Window 0 fills its row of 10, window 1 leaves 5 tokens, window 2 leaves 1.
STORE = TypedStore([[[11, 12, 13], [14, 15, 16]], [[21, UNK, 22]], [[31], [32], [33]]])


def make_builder(store: Any = STORE, micro_sequences: int = 2, shuffle: bool = False, **changes: Any) -> BatchBuilder:
    options: dict[str, Any] = {"masking": MaskingRule(0.3), "seed": 1, "masking_stream": Stream.MASKING} | changes
    order = SampleOrder([np.array([store.num_windows])], None, options["seed"]) if shuffle else None
    return BatchBuilder(
        store, order, SPECIAL, VOCAB_SIZE, sequence_length=LENGTH, micro_sequences=micro_sequences, **options
    )


def test_build_packs_rows_as_typed_out() -> None:
    batch = make_builder(micro_sequences=3).build([0, 1, 2])
    assert batch.original_ids.tolist() == [
        CLS, 11, 12, 13, SEP, CLS, 14, 15, 16, SEP,
        CLS, 21, UNK, 22, SEP,
        CLS, 31, SEP, CLS, 32, SEP, CLS, 33, SEP,
        PAD, PAD, PAD, PAD, PAD, PAD,
    ]  # fmt: skip
    assert batch.original_ids.dtype == torch.int64
    assert batch.cu_seqlens.tolist() == [0, 5, 10, 15, 18, 21, 24]
    assert batch.document_sample.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.document_first_token.tolist() == [0, 5, 0, 0, 3, 6]
    assert (batch.num_live, batch.max_seqlen) == (24, LENGTH)


@pytest.mark.parametrize("seed", range(10))
def test_build_masks_the_quota_of_each_row_and_no_special_id(seed: int) -> None:
    # candidates 6, 2 and 3; 30 % of them, rounded, at least one
    batch = make_builder(micro_sequences=3, seed=seed).build([0, 1, 2])
    masked = batch.masked_rows.tolist()
    assert masked == sorted(set(masked)) and batch.num_masked == len(masked)
    row_of_token = [0] * 10 + [1] * 5 + [2] * 9
    assert [row_of_token[place] for place in masked] == [0, 0, 1, 2]
    assert not {PAD, CLS, SEP, UNK, MASK} & set(batch.original_ids[masked].tolist())


def test_build_numbers_samples_globally() -> None:
    # samples 3 and 4 of three shuffled windows: the second epoch's first two
    batch = make_builder(shuffle=True).build([3, 4])
    assert set(batch.document_sample.tolist()) == {3, 4}


def test_build_of_fewer_rows_pads_the_rest() -> None:
    batch = make_builder().build([1])
    assert batch.original_ids.tolist() == [CLS, 21, UNK, 22, SEP] + [PAD] * 15
    assert batch.cu_seqlens.tolist() == [0, 5] and batch.num_masked == 1


def test_build_of_no_rows_is_all_padding() -> None:
    batch = make_builder().build([])
    assert batch.original_ids.tolist() == [PAD] * 20
    assert batch.cu_seqlens.tolist() == [0]
    assert (batch.num_live, batch.num_masked, len(batch.document_sample)) == (0, 0, 0)
    assert not batch.layout().live.any()


def test_layout_restarts_positions_and_keeps_the_place_in_the_row() -> None:
    layout = make_builder().build([0, 1]).layout()
    assert layout.position.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4] + [0] * 5
    assert layout.document_start.tolist()[:15] == [0] * 5 + [5] * 5 + [10] * 5
    assert layout.token.tolist()[:15] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4]
    assert layout.sample.tolist()[:15] == [0] * 10 + [1] * 5
    assert layout.live.tolist() == [True] * 15 + [False] * 5


def rows_by_sample(batches: list[MaskedBatch]) -> dict[int, tuple[list[int], list[int]]]:
    """Sample index: its ids, and the places in its row that are masked."""
    rows: dict[int, tuple[list[int], list[int]]] = {}
    for batch in batches:
        layout = batch.layout()
        for sample in batch.document_sample.unique().tolist():
            own = layout.live & (layout.sample == sample)
            masked = [place for place in batch.masked_rows.tolist() if own[place]]
            rows[sample] = (batch.original_ids[own].tolist(), layout.token[masked].tolist())
    return rows


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 4), (2, 1), (2, 4), (4, 2), (8, 1)])
def test_step_batches_are_the_same_rows_and_masks_for_any_split(world_size: int, accumulation: int) -> None:
    draw = np.random.default_rng(0)
    store = TypedStore([[draw.integers(4, 50, 8).tolist()] for _ in range(13)])
    expected = rows_by_sample(make_builder(store, 16, shuffle=True).step_batches(32, 1, rank=0, world_size=1))
    builder = make_builder(store, 16 // world_size // accumulation, shuffle=True)
    batches = [
        batch for rank in range(world_size) for batch in builder.step_batches(32, accumulation, rank, world_size)
    ]
    assert len(batches) == world_size * accumulation
    assert sorted(expected) == list(range(32, 48))
    assert rows_by_sample(batches) == expected


def test_to_another_device_is_one_copy_of_one_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = make_builder(micro_sequences=3).build([0, 1, 2])
    copied: list[torch.Tensor] = []
    move = torch.Tensor.to

    def record(tensor: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        assert arguments == (torch.device("meta"),) and keywords == {"non_blocking": True}
        copied.append(tensor)
        return move(tensor, torch.float32).long()  # another buffer, whose values stay readable

    monkeypatch.setattr(torch.Tensor, "to", record)
    moved = batch.to(torch.device("meta"))
    monkeypatch.undo()
    assert len(copied) == 1 and copied[0] is batch.buffer
    for name in NAMES:
        value = getattr(moved, name)
        assert torch.equal(value, getattr(batch, name)), name
        assert value.untyped_storage().data_ptr() == moved.buffer.untyped_storage().data_ptr(), name
    assert (moved.num_live, moved.max_seqlen) == (batch.num_live, batch.max_seqlen)


def test_to_the_cpu_copies_nothing() -> None:
    batch = make_builder().build([0])
    assert batch.to(torch.device("cpu")) is batch


@pytest.mark.requires_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_to_a_gpu_keeps_every_value() -> None:
    batch = make_builder(micro_sequences=3).build([0, 1, 2])
    moved = batch.to(torch.device("cuda"))
    assert moved.original_ids.is_cuda
    assert moved.original_ids.tolist() == batch.original_ids.tolist()
    assert moved.masked_rows.tolist() == batch.masked_rows.tolist()


def test_words_are_masked_whole_where_the_rule_says_so() -> None:
    word_starts = np.zeros(VOCAB_SIZE, dtype=bool)
    word_starts[[11, 14]] = True
    builder = make_builder(masking=MaskingRule(0.5, "word"), word_starts=word_starts)
    for sample in range(20):
        batch = builder.build([0])
        masked = batch.original_ids[batch.masked_rows].tolist()
        assert masked in ([11, 12, 13], [14, 15, 16]), sample


def test_masked_tokens_are_shown_as_the_rule_says() -> None:
    assert make_builder().build([0]).masked_ids.tolist() == [MASK, MASK]
    kept = make_builder(masking=MaskingRule(0.5, mask_share=0.0), pieces=(4, 50)).build([0, 1])
    assert torch.equal(kept.masked_ids, kept.original_ids[kept.masked_rows])
    drawn = make_builder(masking=MaskingRule(0.5, mask_share=0.0, random_share=1.0), pieces=(60, 62)).build([0, 1])
    assert set(drawn.masked_ids.tolist()) <= {60, 61}
