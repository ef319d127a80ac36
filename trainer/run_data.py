"""What a run reads: its windows, their order, its batches, as the recipe says.

Used by: trainer/assemble.py, plan.py. Tested by tests/trainer/test_plan.py and tests/integration/.
Not here: shards (dataset.py, shards.py), packing and masking themselves (packing.py, masking.py, batch.py).
"""

from typing import cast

from disentangled.data_prep.shard_schema import Manifest
from disentangled.kernels.counter_rng import Stream
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.batch_size import consumed_samples
from disentangled.trainer.dataset import Dataset, tokenizer_path
from disentangled.trainer.mixture import describe_mixture, mixture_shares
from disentangled.trainer.order import SampleOrder, order_of_sources
from disentangled.trainer.packing import Packing
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.shards import WindowStore
from disentangled.trainer.word_starts import word_start_table


def check_cache(config: RunConfig, manifest: Manifest) -> None:
    """Refuse a limited cache under an order that jumps over all shards: each would be fetched again and again."""
    total = sum(record.size_bytes for record in manifest.splits["train"])
    if 0 < config.data.cache_bytes < total and not config.data.shuffle_block_shards:
        raise ValueError(
            f"data.cache_bytes is {config.data.cache_bytes:,} and the training shards have {total:,}: shuffle the rows "
            "of a few shards at a time with data.shuffle_block_shards, or raise it"
        )


def open_windows(config: RunConfig, dataset: Dataset, split: str, num_processes: int = 1) -> WindowStore:
    """The windows of a split; its shards are verified when they are first read."""
    return WindowStore(
        dataset,
        split,
        config.data.sequence_length,
        config.data.minimum_piece_tokens,
        cast(Packing, config.data.packing),
        num_processes=num_processes,
    )


def make_order(config: RunConfig, store: WindowStore) -> SampleOrder:
    """The order of the training split's windows over the whole run."""
    return order_of_sources(
        store.sources(),
        config.data.mixture_alpha,
        config.data.max_epochs,
        consumed_samples(config.batch, config.schedule.total_steps),
        config.run.seed,
        config.data.shuffle_block_shards,
    )


def describe_sources(config: RunConfig, store: WindowStore) -> list[str]:
    """How often the run goes through each source."""
    sizes = [size for size, _ in store.sources()]
    num_samples = consumed_samples(config.batch, config.schedule.total_steps)
    shares = mixture_shares(sizes, config.data.mixture_alpha, config.data.max_epochs, num_samples)
    return describe_mixture(sizes, shares, num_samples)


def make_builder(
    config: RunConfig, dataset: Dataset, store: WindowStore, order: SampleOrder | None, stream: Stream
) -> BatchBuilder:
    """The batches of a split; held-out windows are asked for by number, without an order."""
    needs_words = config.masking.unit in ("word", "span")
    manifest = dataset.manifest
    return BatchBuilder(
        store,
        order,
        manifest.special_ids,
        manifest.vocab_size,
        sequence_length=config.data.sequence_length,
        micro_sequences=config.batch.micro_sequences,
        masking=config.masking.rule(),
        seed=config.run.seed,
        masking_stream=stream,
        pieces=(manifest.special_ids.unk + 1, manifest.num_pieces),
        word_starts=word_start_table(tokenizer_path(dataset), manifest.vocab_size) if needs_words else None,
    )
