"""From window numbers to the tensors of one micro-batch.

What: each piece of a window becomes a document, [CLS] piece [SEP]; documents of all rows stand one after another in one
flat run of micro_sequences * sequence_length tokens, padding last. Masked tokens are chosen here, on the host, so that
the number of targets is known without asking the device.
Used by: trainer/loop.py, trainer/evaluate.py. Tested by tests/trainer/test_batch.py.
"""

# T flat tokens  M masked tokens

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.kernels.counter_rng import Stream
from disentangled.model.layout import TokenLayout, packed_layout
from disentangled.trainer.masking import choose_masked_tokens
from disentangled.trainer.order import rank_slice, windows_of_samples
from disentangled.trainer.shards import WindowStore


@dataclass(frozen=True)
class MaskedBatch:
    """One micro-batch of packed rows.

    Attributes:
        original_ids: [T] int64, the text with its special tokens, [PAD] past the last document.
        cu_seqlens: [documents + 1] int64.
        document_sample, document_first_token: [documents] int64, see model/layout.py.
        masked_rows: [M] int64, flat indices of the tokens to mask.
        num_live: tokens that are not padding.
        num_pairs: query-key pairs inside documents, the sum of their squared lengths.
        max_seqlen: no document is longer.
    """

    original_ids: Tensor
    cu_seqlens: Tensor
    document_sample: Tensor
    document_first_token: Tensor
    masked_rows: Tensor
    num_live: int
    num_pairs: int
    max_seqlen: int

    @property
    def num_masked(self) -> int:
        """M, known on the host."""
        return self.masked_rows.shape[0]

    def layout(self) -> TokenLayout:
        """The model's view of the documents."""
        return packed_layout(
            self.cu_seqlens.int(),
            self.max_seqlen,
            self.original_ids.shape[0],
            self.document_sample,
            self.document_first_token,
        )

    def to(self, device: torch.device) -> "MaskedBatch":
        """The same batch on a device: one pinned buffer, one copy."""
        if device.type == "cpu":
            return self
        tensors = {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.type is Tensor}
        buffer = torch.cat(list(tensors.values())).pin_memory().to(device, non_blocking=True)
        return replace(
            self, **dict(zip(tensors, buffer.split([len(tensor) for tensor in tensors.values()]), strict=True))
        )


class BatchBuilder:
    """Builds the micro-batch of given sample indices; holds no state but what defines the run."""

    def __init__(
        self,
        store: WindowStore,
        special_ids: SpecialIds,
        *,
        sequence_length: int,
        micro_sequences: int,
        mask_probability: float,
        seed: int,
        masking_stream: Stream = Stream.MASKING,
        shuffle: bool = True,
    ) -> None:
        self._store = store
        self._special_ids = special_ids
        self._sequence_length = sequence_length
        self._micro_sequences = micro_sequences
        self._mask_probability = mask_probability
        self._seed = seed
        self._masking_stream = masking_stream
        self._shuffle = shuffle

    def step_batches(self, consumed: int, accumulation: int, rank: int, world_size: int) -> list[MaskedBatch]:
        """The micro-batches that `rank` runs in the step that starts at sample `consumed`."""
        return [
            self.build(rank_slice(consumed, number, rank, world_size, self._micro_sequences))
            for number in range(accumulation)
        ]

    def build(self, samples: Sequence[int] | NDArray[np.int64]) -> MaskedBatch:
        """The micro-batch of these global sample indices; fewer than micro_sequences leave the rest padding."""
        samples = np.asarray(samples, dtype=np.int64)
        windows = windows_of_samples(samples, self._store.num_windows, self._seed) if self._shuffle else samples
        special = self._special_ids
        ids = np.full(self._micro_sequences * self._sequence_length, special.pad, dtype=np.int64)
        starts, document_row, first_token = [0], [], []
        for row, window in enumerate(windows.tolist()):
            row_start = starts[-1]
            for piece in self._store.pieces(window):
                start = starts[-1]
                end = start + len(piece) + 2
                ids[start], ids[end - 1] = special.cls, special.sep
                ids[start + 1 : end - 1] = piece
                document_row.append(row)
                first_token.append(start - row_start)
                starts.append(end)
        return self._mask(
            samples, ids, np.array(starts), np.array(document_row, np.int64), np.array(first_token, np.int64)
        )

    def _mask(
        self,
        samples: NDArray[np.int64],
        ids: NDArray[np.int64],
        starts: NDArray[np.int64],
        document_row: NDArray[np.int64],
        first_token: NDArray[np.int64],
    ) -> MaskedBatch:
        lengths = np.diff(starts)
        num_live = int(starts[-1])
        row = np.repeat(document_row, lengths)
        token = np.arange(num_live) - np.repeat(starts[:-1] - first_token, lengths)
        special = self._special_ids
        is_special = np.isin(ids[:num_live], [special.pad, special.cls, special.sep, special.unk, special.mask])
        masked = choose_masked_tokens(
            row,
            samples[row],
            token,
            ~is_special,
            probability=self._mask_probability,
            seed=self._seed,
            stream=self._masking_stream,
        )
        return MaskedBatch(
            original_ids=torch.from_numpy(ids),
            cu_seqlens=torch.from_numpy(starts.astype(np.int64)),
            document_sample=torch.from_numpy(samples[document_row]),
            document_first_token=torch.from_numpy(first_token),
            masked_rows=torch.from_numpy(masked),
            num_live=num_live,
            num_pairs=int((lengths**2).sum()),
            max_seqlen=self._sequence_length,
        )
