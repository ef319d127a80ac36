"""A dataset's numbers as text for an 80-column terminal.

Used by: build_corpus.py, inspect_shard.py. Tested by: tests/data_prep/test_inspect_shard.py.
"""

from pathlib import Path

from disentangled.data_prep.shard_schema import SPLITS, DatasetIdentity, Manifest


def describe_tokenizer(identity: DatasetIdentity) -> str:
    """Return the line about the tokenizer."""
    sizes = f"{identity.num_pieces:,} pieces, vocabulary {identity.vocab_size:,}, {identity.token_storage}"
    return f"tokenizer  {sizes}, sha256 {identity.tokenizer_sha256[:12]}"


def describe_dataset(directory: str | Path, manifest: Manifest) -> str:
    """Return what the dataset holds, one line for each split."""
    size_bytes = sum(file.size_bytes for file in manifest.inputs)
    files = "file" if len(manifest.inputs) == 1 else "files"
    lines = [
        str(directory),
        f"dataset    {manifest.dataset_id[:12]}, schema version {manifest.schema_version}, seed {manifest.seed}",
        describe_tokenizer(manifest),
        f"inputs     {len(manifest.inputs):,} {files}, {size_bytes:,} bytes as stored",
        "",
        f"{'split':<11}{'documents':>11}{'tokens':>15}{'shards':>8}{'bytes/token':>13}{'unknown':>10}{'as bytes':>10}",
    ]
    for split in SPLITS:
        counts = manifest.counts[split]
        sizes = f"{counts.num_documents:>11,}{counts.num_tokens:>15,}{counts.num_shards:>8,}"
        byte_rate = counts.num_byte_tokens / counts.num_tokens
        rates = f"{counts.bytes_per_token:>13.3f}{counts.unknown_rate:>10.3%}{byte_rate:>10.3%}"
        lines.append(f"{split:<11}{sizes}{rates}")
    entropy = manifest.training_unigram_entropy_nats
    cross_entropy = manifest.validation_unigram_cross_entropy_nats
    lines += [
        "",
        f"unigram    entropy of train {entropy:.3f} nats/token, validation under train {cross_entropy:.3f}",
    ]
    return "\n".join(lines)
