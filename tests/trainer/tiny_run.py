"""A run small enough for a test: its config, and its parts as trainer/train.py builds them."""

from dataclasses import dataclass
from pathlib import Path

import torch

from disentangled.data_prep.shard_schema import Manifest
from disentangled.kernels.counter_rng import Stream
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator, Sampling, banned_ids
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.engine import EnginePair, build_models
from disentangled.trainer.run_config import RunConfig, load_run_config
from disentangled.trainer.run_data import make_builder, make_order, open_windows
from tests.trainer.plain_engines import PlainEngine

CPU = torch.device("cpu")
SMALLEST = (
    "model.hidden_size=32",
    "model.num_hidden_layers=2",
    "model.generator_num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.intermediate_size=64",
    "model.position_buckets=8",
    "model.max_position_embeddings=64",
    "data.sequence_length=32",
    "batch.global_sequences=8",
    "batch.micro_sequences=4",
    "schedule.total_steps=20",
    "schedule.warmup_steps=4",
)


def tiny_config(shards: Path, *overrides: str) -> RunConfig:
    """The tiny recipe made smaller, on these shards."""
    return load_run_config("tiny", [*SMALLEST, f"data.shards={shards}", *overrides])


@dataclass(frozen=True)
class Parts:
    """What a run is made of, without DeepSpeed."""

    config: RunConfig
    manifest: Manifest
    training: BatchBuilder
    validation: BatchBuilder
    generator: Generator
    discriminator: Discriminator
    sampling: Sampling

    def plain_engines(self, moves: bool = True) -> EnginePair:
        """Both models in plain torch; where they do not move their gradients stay."""
        section = self.config.optimizer
        table_apart = self.config.continue_from.generator_warmup_steps > 0
        return EnginePair(
            PlainEngine(self.generator, section, moves, table_apart),  # type: ignore[arg-type]
            PlainEngine(self.discriminator, section, moves),  # type: ignore[arg-type]
            zero_stage=0,
        )


def build_parts(config: RunConfig) -> Parts:
    """Build them as trainer/train.py does."""
    dataset = LocalDataset(config.data.shards)
    manifest = dataset.manifest
    generator, discriminator = build_models(config, manifest)
    special = manifest.special_ids
    ids = (special.pad, special.cls, special.sep, special.unk, special.mask)
    banned = banned_ids(generator.config.vocab_size, manifest.num_pieces, ids, CPU)
    train, validation = (open_windows(config, dataset, split) for split in ("train", "validation"))
    return Parts(
        config,
        manifest,
        make_builder(config, dataset, train, make_order(config, train), Stream.MASKING),
        make_builder(config, dataset, validation, None, Stream.EVALUATION_MASKING),
        generator,
        discriminator,
        Sampling(config.run.seed, Stream.REPLACEMENT, banned),
    )
