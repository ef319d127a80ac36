"""Pre-training: batches from shards, the G-then-D step on two DeepSpeed engines, checkpoints, export.

The only package that imports deepspeed. From `data_prep` it imports `shard_schema` alone.
"""
