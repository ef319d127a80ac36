"""From sample numbers to the tensors of one micro-batch.

What: each piece of a row becomes a document, [CLS] piece [SEP]; documents of all rows stand one after another in one
flat run of micro_sequences * sequence_length tokens, padding last. Masked tokens are chosen here, on the host, so that
the number of targets is known without asking the device.
Used by: trainer/loader.py, evaluate.py. Tested by tests/trainer/test_batch.py.
Not here: worker processes (loader.py).
"""

# T flat tokens  M masked tokens

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.kernels.counter_rng import Stream
from disentangled.model.layout import TokenLayout, packed_layout
from disentangled.trainer.masking import MaskingRule, choose_masked, shown_ids
from disentangled.trainer.order import SampleOrder, rank_slice
from disentangled.trainer.shards import Pieces


class PieceStore(Protocol):
    """What a builder needs of trainer/shards.py."""

    def pieces(self, windows: NDArray[np.int64]) -> Pieces:
        """The pieces of these windows."""

    def copy_tokens(self, pieces: Pieces, out: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Write each piece's tokens to `out`, from `places` on."""


@dataclass(frozen=True)
class MaskedBatch:
    """One micro-batch of packed rows, in one buffer: one copy takes it to another process or device.

    Attributes:
        buffer: int64, the tensors below one after another.
        num_tokens: T, padding included.
        num_documents: documents of all rows.
        num_live: tokens that are not padding.
        num_pairs: query-key pairs inside documents, the sum of their squared lengths.
        max_seqlen: no document is longer.
        row_tokens: tokens of a row.
    """

    buffer: Tensor
    num_tokens: int
    num_documents: int
    num_live: int
    num_pairs: int
    max_seqlen: int

    @classmethod
    def join(
        cls,
        original_ids: NDArray[np.int64],
        cu_seqlens: NDArray[np.int64],
        document_sample: NDArray[np.int64],
        document_first_token: NDArray[np.int64],
        masked_rows: NDArray[np.int64],
        masked_ids: NDArray[np.int64],
        max_seqlen: int,
    ) -> "MaskedBatch":
        """The batch of these arrays; the attributes of the same names say what they are."""
        parts = (original_ids, cu_seqlens, document_sample, document_first_token, masked_rows, masked_ids)
        return cls(
            buffer=torch.from_numpy(np.concatenate(parts)),
            num_tokens=original_ids.size,
            num_documents=document_sample.size,
            num_live=int(cu_seqlens[-1]),
            num_pairs=int((np.diff(cu_seqlens) ** 2).sum()),
            max_seqlen=max_seqlen,
        )

    @property
    def num_masked(self) -> int:
        """M, known on the host."""
        return (self.buffer.shape[0] - self.num_tokens - 3 * self.num_documents - 1) // 2

    @property
    def original_ids(self) -> Tensor:
        """[T], the text with its special tokens, [PAD] past the last document."""
        return self._parts()[0]

    @property
    def cu_seqlens(self) -> Tensor:
        """[documents + 1], where each document starts."""
        return self._parts()[1]

    @property
    def document_sample(self) -> Tensor:
        """[documents], see model/layout.py."""
        return self._parts()[2]

    @property
    def document_first_token(self) -> Tensor:
        """[documents], see model/layout.py."""
        return self._parts()[3]

    @property
    def masked_rows(self) -> Tensor:
        """[M], flat indices of the tokens to predict, ascending."""
        return self._parts()[4]

    @property
    def masked_ids(self) -> Tensor:
        """[M], what the generator sees there."""
        return self._parts()[5]

    def _parts(self) -> tuple[Tensor, ...]:
        documents, masked = self.num_documents, self.num_masked
        return self.buffer.split([self.num_tokens, documents + 1, documents, documents, masked, masked])

    def layout(self) -> TokenLayout:
        """The model's view of the documents."""
        return packed_layout(
            self.cu_seqlens.int(), self.max_seqlen, self.num_tokens, self.document_sample, self.document_first_token
        )

    def pin_memory(self) -> "MaskedBatch":
        """The same batch in memory that a GPU copies from without waiting."""
        return replace(self, buffer=self.buffer.pin_memory())

    def to(self, device: torch.device) -> "MaskedBatch":
        """The same batch on a device: one copy, which no one waits for if the batch is pinned."""
        return self if self.buffer.device == device else replace(self, buffer=self.buffer.to(device, non_blocking=True))


class BatchBuilder:
    """Builds the micro-batch of given sample indices; holds no state but what defines the run.

    Args:
        order: which window a sample is; None: window and sample have one number.
        vocab_size: no id of the store is as large.
        pieces: first id of an ordinary piece, and one past the last.
        word_starts: bool by id; only masking by words needs it.
    """

    def __init__(
        self,
        store: PieceStore,
        order: SampleOrder | None,
        special_ids: SpecialIds,
        vocab_size: int,
        *,
        sequence_length: int,
        micro_sequences: int,
        masking: MaskingRule,
        seed: int,
        masking_stream: Stream = Stream.MASKING,
        pieces: tuple[int, int] = (0, 0),
        word_starts: NDArray[np.bool_] | None = None,
    ) -> None:
        self._store = store
        self._order = order
        self._special_ids = special_ids
        self._sequence_length = sequence_length
        self._micro_sequences = micro_sequences
        self._masking = masking
        self._seed = seed
        self._masking_stream = masking_stream
        self._pieces = pieces
        self._word_starts = word_starts
        specials = [special_ids.pad, special_ids.cls, special_ids.sep, special_ids.unk, special_ids.mask]
        self._is_ordinary = np.ones(vocab_size, dtype=bool)
        self._is_ordinary[specials] = False

    def step_batches(self, consumed: int, accumulation: int, rank: int, world_size: int) -> list[MaskedBatch]:
        """The micro-batches that `rank` runs in the step that starts at sample `consumed`."""
        return [
            self.build(rank_slice(consumed, number, rank, world_size, self._micro_sequences))
            for number in range(accumulation)
        ]

    def windows(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The window (row of the store) that each sample is."""
        return samples if self._order is None else self._order.windows(samples)

    def build(self, samples: Sequence[int] | NDArray[np.int64]) -> MaskedBatch:
        """The micro-batch of these global sample indices; fewer than micro_sequences leave the rest padding."""
        samples = np.asarray(samples, dtype=np.int64)
        pieces = self._store.pieces(self.windows(samples))
        special, row_tokens = self._special_ids, self._sequence_length
        ends = np.cumsum(pieces.length + 2)
        live_of_row = np.bincount(pieces.row, weights=pieces.length + 2, minlength=samples.size).astype(np.int64)
        first_token = ends - (pieces.length + 2) - (np.cumsum(live_of_row) - live_of_row)[pieces.row]
        # All rows as a rectangle, which is what masks are chosen in; then without its gaps.
        rows = np.full((samples.size, row_tokens), special.pad, dtype=np.int64)
        place = pieces.row * row_tokens + first_token
        rows.ravel()[place] = special.cls
        rows.ravel()[place + pieces.length + 1] = special.sep
        self._store.copy_tokens(pieces, rows.ravel(), place + 1)
        is_live = np.arange(row_tokens) < live_of_row[:, None]
        masked = self._choose_masked(rows, samples)
        ids = np.full(self._micro_sequences * row_tokens, special.pad, dtype=np.int64)
        ids[: int(live_of_row.sum())] = rows[is_live]
        chosen = np.flatnonzero(masked)
        row, token = np.divmod(chosen, row_tokens)
        return MaskedBatch.join(
            original_ids=ids,
            cu_seqlens=np.concatenate([[0], ends]).astype(np.int64),
            document_sample=samples[pieces.row],
            document_first_token=first_token,
            masked_rows=token + (np.cumsum(live_of_row) - live_of_row)[row],
            masked_ids=shown_ids(
                rows.ravel()[chosen], row, token, samples, self._masking,
                mask_id=special.mask, pieces=self._pieces, seed=self._seed, stream=self._masking_stream,
            ),
            max_seqlen=row_tokens,
        )  # fmt: skip

    def _choose_masked(self, rows: NDArray[np.int64], samples: NDArray[np.int64]) -> NDArray[np.bool_]:
        return choose_masked(
            self._is_ordinary[rows],
            None if self._word_starts is None else self._word_starts[rows],
            samples,
            self._masking,
            seed=self._seed,
            stream=self._masking_stream,
        )
