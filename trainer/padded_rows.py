"""A packed micro-batch as rectangles, for models that know rows and masks instead of flat documents.

What: input, labels, positions and documents as [rows, sequence_length], under Hugging Face's names where it has one.
Our own models take the flat batch (docs/decisions/0003-flat-documents.md).
Used by: whoever trains another model on our batches. Tested by: tests/trainer/test_padded_rows.py.
"""

# B rows  N tokens of a row

from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled.trainer.batch import MaskedBatch

IGNORED = -100  # torch's and Hugging Face's label of a token without a target


@dataclass(frozen=True)
class PaddedRows:
    """One micro-batch; all [B, N] int64, rows in the order of their samples in the batch.

    Attributes:
        input_ids: what the generator sees, [PAD] past a row's end.
        labels: the original token where one was masked, else IGNORED.
        attention_mask: 1 for tokens, 0 for padding.
        position_ids: place in the document, from 0 on; 0 for padding.
        document_ids: number of the document in its row, from 1 on; 0 for padding. Tokens of different documents must
            not see each other.
    """

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    document_ids: Tensor

    def block_mask(self) -> Tensor:
        """[B, 1, N, N] bool: which key each query sees. It has N numbers a token: flat batches need none."""
        own = self.document_ids[:, None, :, None] == self.document_ids[:, None, None, :]
        return own & (self.document_ids != 0)[:, None, None, :]


def padded_rows(batch: MaskedBatch, sequence_length: int, pad_id: int) -> PaddedRows:
    """The rows of a batch; a row that holds nothing is left out."""
    layout = batch.layout()
    samples, row_of_document = torch.unique_consecutive(batch.document_sample, return_inverse=True)
    lengths = batch.cu_seqlens.diff()
    first_document = torch.searchsorted(row_of_document, row_of_document)
    number = torch.arange(lengths.numel(), device=lengths.device) - first_document + 1
    place = row_of_document.repeat_interleave(lengths) * sequence_length + layout.token[layout.live]
    size = samples.numel() * sequence_length

    def spread(values: Tensor, gap: int) -> Tensor:
        rectangle = values.new_full((size,), gap)
        return rectangle.index_copy_(0, place, values).view(-1, sequence_length)

    seen = batch.original_ids.index_copy(0, batch.masked_rows, batch.masked_ids)
    labels = torch.full_like(batch.original_ids, IGNORED)
    labels[batch.masked_rows] = batch.original_ids[batch.masked_rows]
    live = layout.live
    return PaddedRows(
        input_ids=spread(seen[live], pad_id),
        labels=spread(labels[live], IGNORED),
        attention_mask=spread(torch.ones_like(seen[live]), 0),
        position_ids=spread(layout.position[live], 0),
        document_ids=spread(number.repeat_interleave(lengths), 0),
    )
