"""Pre-training: batches from shards, the G-then-D step on two DeepSpeed engines, checkpoints, export.

The only package that imports deepspeed. From `data_prep` it imports `shard_schema` (the contract), `input_store` and
`whole_file`.
"""

import os

import torch

if not torch.accelerator.is_available():
    # DeepSpeed warns of it in every process that imports it; trainer/launch.py says it once
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
