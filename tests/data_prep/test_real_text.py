"""Real Chinese and Vietnamese articles, where the checkout has them: no blanks to cut at, wide and stacked letters."""

from pathlib import Path

import pytest
from rich.progress import Progress

from disentangled.data_prep.build_corpus import build_corpus
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_text import read_documents
from disentangled.data_prep.shard_schema import SPLITS, load_manifest, open_shard
from disentangled.data_prep.task_pool import SerialPool
from disentangled.data_prep.tokenizer import load_tokenizer

TEXT = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "multi_text"
FILES = [TEXT / "vi.wikipedia.txt.zst", TEXT / "zh.wikipedia.txt.zst"]


@pytest.mark.skipif(not all(file.is_file() for file in FILES), reason=f"{TEXT} is not here")
def test_real_articles_decode_to_their_normalized_text(tmp_path: Path):
    options = BuildOptions(
        inputs=tuple(map(str, FILES)), output=str(tmp_path / "out"), vocab_size=6000, tokenizer_sample_bytes=400_000
    )
    manifest = build_corpus(options, SerialPool(), Progress(disable=True))
    assert manifest.totals.num_documents == 156 + 1 + 945
    assert manifest.totals.unknown_rate == 0.0
    # 3 bytes a character in Chinese: more pieces than characters would mean that byte fallback does the work
    assert manifest.totals.bytes_per_token > 2.5
    # 6,000 pieces in equal use would give log 6000 = 8.7
    assert 6 < manifest.training_unigram_entropy_nats < 8.7
    assert 6 < manifest.validation_unigram_cross_entropy_nats < 8.7
    tokenizer = load_tokenizer(tmp_path / "out" / "spm.model")
    starts = {file.name: {d.start_byte: d.text for d in read_documents(file)} for file in find_text_files(FILES)}
    for record in (record for split in SPLITS for record in load_manifest(tmp_path / "out").splits[split]):
        shard = open_shard(tmp_path / "out", record, "full")
        names = [part.file for part in record.ranges for _ in range(part.num_documents)]
        for row in range(0, record.num_documents, 25):
            decoded = tokenizer.processor.decode(shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist())
            text = starts[names[row]][int(shard.start_bytes[row])]
            normalized = tokenizer.processor.normalize(text).replace("\u2581", "")
            # a cut without a blank adds one, so blanks are left out of the comparison
            assert decoded.replace(" ", "") == normalized.replace(" ", "")
