import itertools
from pathlib import Path

import pytest
import torch

from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.padded_rows import IGNORED, padded_rows
from tests.trainer.tiny_run import build_parts, tiny_config

LENGTH = 64


@pytest.fixture(scope="module")
def batch(shards: Path) -> MaskedBatch:
    parts = build_parts(tiny_config(shards, f"data.sequence_length={LENGTH}", "batch.micro_sequences=4"))
    return parts.training.build(range(17, 21))


def test_rows_are_the_flat_documents_one_after_another(batch: MaskedBatch) -> None:
    rows = padded_rows(batch, LENGTH, pad_id=0)
    assert rows.input_ids.shape == (4, LENGTH)
    bounds, samples = batch.cu_seqlens.tolist(), batch.document_sample.tolist()
    expected = {name: [[] for _ in range(4)] for name in ("original", "positions", "documents")}
    for document, (start, end) in enumerate(itertools.pairwise(bounds)):
        row = samples[document] - 17
        expected["original"][row] += batch.original_ids[start:end].tolist()
        expected["positions"][row] += range(end - start)
        expected["documents"][row] += [1 + sum(s == samples[document] for s in samples[:document])] * (end - start)
    original = torch.where(rows.labels == IGNORED, rows.input_ids, rows.labels)
    for row in range(4):
        own = len(expected["original"][row])
        assert original[row, :own].tolist() == expected["original"][row]
        assert rows.position_ids[row, :own].tolist() == expected["positions"][row]
        assert rows.document_ids[row, :own].tolist() == expected["documents"][row]
        assert rows.attention_mask[row].tolist() == [1] * own + [0] * (LENGTH - own)
        for rectangle in (rows.input_ids, rows.position_ids, rows.document_ids):
            assert not rectangle[row, own:].any()
    assert int((rows.labels != IGNORED).sum()) == batch.num_masked
    assert len(samples) > 4, "some row has several documents"


def test_block_mask_shows_each_query_its_own_document(batch: MaskedBatch) -> None:
    rows = padded_rows(batch, LENGTH, pad_id=0)
    mask = rows.block_mask()
    for row in range(4):
        for query in range(LENGTH):
            document = rows.document_ids[row, query]
            expected = (rows.document_ids[row] == document) & (rows.document_ids[row] != 0)
            assert torch.equal(mask[row, 0, query], expected)


def test_batch_of_nothing_has_no_rows(shards: Path) -> None:
    empty = build_parts(tiny_config(shards)).training.build([])
    assert padded_rows(empty, 32, pad_id=0).input_ids.shape == (0, 32)
