"""Text to Arrow shards, offline and without torch: `build_corpus` writes a dataset, `inspect_shard` shows
one, `verify` looks for its faults.

`shard_schema` is the contract with the trainer and the only file of this folder that the trainer imports.
docs/data_format.md describes what lies on disk.
"""
