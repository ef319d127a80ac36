"""A training process: `deepspeed --module disentangled.trainer.train --recipe R --engine E [section.key=value ...]`.

What: reads the recipe and the DeepSpeed JSON, opens the shards, builds both engines, resumes from the newest whole
checkpoint of run.dir if there is one, and runs the loop. Launch it with `deepspeed`, or with
`python -m disentangled.trainer.launch`, which also survives being told to stop.
Exit codes: 0 done; 85 saved before the end, run the same command again; 2 the user's mistake, named in one line.
Used by: users, trainer/launch.py, trainer/demo.py. Tested by tests/integration/.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from disentangled.data_prep.shard_schema import SPLITS, Manifest
from disentangled.kernels.counter_rng import Stream
from disentangled.model.generator import Sampling, banned_ids
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.batch_size import consumed_samples
from disentangled.trainer.checkpoint import TrainerState, find_checkpoint, load_engines, load_state
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.dataset import Dataset, open_dataset, tokenizer_path
from disentangled.trainer.distributed import Ranks, join_ranks, leave_ranks
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.engine import build_engines, build_models, check_precision
from disentangled.trainer.evaluate import choose_windows
from disentangled.trainer.interrupt import EXIT_SAVED, Interrupt
from disentangled.trainer.loader import BatchLoader, DataError, Slicing
from disentangled.trainer.loop import Training, train
from disentangled.trainer.metrics import MetricLog, MetricSums
from disentangled.trainer.mixture import describe_mixture, mixture_shares
from disentangled.trainer.order import SampleOrder, order_of_sources
from disentangled.trainer.packing import Packing
from disentangled.trainer.run_config import RunConfig, accumulation_steps, load_run_config
from disentangled.trainer.run_folder import claim_run_folder, write_run_file
from disentangled.trainer.shards import WindowStore
from disentangled.trainer.word_starts import word_start_table

# how long a rank with bad news waits for the first rank of its host to tell it, before it does so itself
SPEAK_UP_SECONDS = 30


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; everything but the two files is an override of a recipe key."""
    parser = OneLineParser(prog="disentangled.trainer.train", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--engine", required=True, help="DeepSpeed JSON, or the name of a shipped one")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher adds it
    parser.add_argument("--launch-id", default="", help=argparse.SUPPRESS)  # by which the launcher finds its ranks
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; returns its exit code."""
    try:
        options = parse_arguments(arguments)
        interrupt = Interrupt(options.launch_id)
        config = load_run_config(options.recipe, options.overrides)
        training = build_training(config, load_ds_config(options.engine))
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SPEAK_UP_SECONDS)  # the launcher ends this rank as soon as the first one has spoken and left
        print_error(error)
        leave_ranks()
        return EXIT_USER_ERROR
    interrupt.catch_signals()
    try:
        finished = train(training, interrupt)
    except DataError as error:
        if training.ranks.is_first:
            print_error(error)
        leave_ranks()
        return EXIT_USER_ERROR
    if training.log is not None:
        training.log.close()
        ending = "done" if finished else f"stopped ({interrupt.reason() or 'another rank was asked to'}), saved"
        say(f"{ending} at step {training.step}: {config.run.dir}")
    leave_ranks()
    return 0 if finished else EXIT_SAVED


def build_training(config: RunConfig, ds_config: dict[str, object]) -> Training:
    """Everything the loop needs, resumed where the run folder has a checkpoint.

    Raises:
        ValueError: anything the user can mend, in one line.
    """
    for key, value in (("data.shards", config.data.shards), ("run.dir", config.run.dir)):
        if not value:
            raise ValueError(f"{key} is not set: add {key}=DIR to the command")
    check_precision(config, ds_config)
    dataset = open_dataset(config.data.shards, config.data.cache, config.data.cache_bytes)
    manifest = dataset.manifest
    check_cache(config, manifest)
    accumulation = accumulation_steps(config.batch, int(os.environ.get("WORLD_SIZE", "1")))
    run_dir = claim_run_folder(config, ds_config, manifest)
    stores = {split: open_windows(config, dataset, split) for split in SPLITS}
    stores["validation"].open_all()  # it is small; training shards are verified when they are first read
    order = make_order(config, stores["train"])
    generator, discriminator = build_models(config, manifest)

    ranks = join_ranks()
    checkpoint = choose_checkpoint(run_dir, ranks)
    state = load_state(checkpoint) if checkpoint else None
    check_resumable(state, ranks)
    engines = build_engines(generator, discriminator, config, ds_config, accumulation)
    if ranks.is_first:
        write_run_file(run_dir, config, dataset, ds_config)
        for line in describe_sources(config, stores["train"]) if len(manifest.sources) > 1 else ():
            say(line)
    sums = MetricSums(ranks.device)
    if checkpoint and state:
        load_engines(checkpoint, engines)
        if ranks.is_first:
            sums.restore(state.sums)
            say(f"resuming at step {state.step} from {checkpoint}")
    step = state.step if state else 0
    special = manifest.special_ids
    banned = banned_ids(
        engines.generator.module.config.vocab_size,
        manifest.num_pieces,
        (special.pad, special.cls, special.sep, special.unk, special.mask),
        ranks.device,
    )
    return Training(
        config=config,
        dataset_id=manifest.dataset_id,
        ranks=ranks,
        engines=engines,
        loader=BatchLoader(
            make_builder(config, dataset, stores["train"], order, Stream.MASKING),
            Slicing(config.batch, ranks.rank, ranks.world_size),
            config.data.workers,
            pin_memory=ranks.device.type == "cuda",
        ),
        validation=make_builder(config, dataset, stores["validation"], None, Stream.EVALUATION_MASKING),
        validation_windows=choose_windows(stores["validation"].num_windows, config.evaluate.num_sequences),
        sampling=Sampling(config.run.seed, Stream.REPLACEMENT, banned),
        sums=sums,
        log=MetricLog(run_dir, step, config.schedule.total_steps, config.log.tensorboard) if ranks.is_first else None,
        step=step,
        saved_step=step if checkpoint else None,
    )


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


def choose_checkpoint(run_dir: Path, ranks: Ranks) -> Path | None:
    """The newest whole checkpoint, chosen by the first rank for all; None for a new run.

    Raises:
        ValueError: there are checkpoints, but every one is damaged.
    """
    checkpoint, faults = ranks.copy_from_first(find_checkpoint(run_dir) if ranks.is_first else None)
    if faults and checkpoint is None:
        raise ValueError(
            f"no checkpoint of {run_dir} is whole: {'; '.join(faults)}: restore one, or remove "
            f"{run_dir / 'checkpoints'} to begin at step 0 again"
        )
    if ranks.is_first:
        for fault in faults:
            print(f"warning: {fault}: using {checkpoint}", file=sys.stderr, flush=True)
    return checkpoint


def check_resumable(state: TrainerState | None, ranks: Ranks) -> None:
    """Refuse a checkpoint of another number of ranks."""
    if state is not None and state.world_size != ranks.world_size:
        raise ValueError(
            f"the checkpoint at step {state.step} was written by {state.world_size} ranks, this launch has "
            f"{ranks.world_size}: launch {state.world_size}"
        )


if __name__ == "__main__":
    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ and "LOCAL_SIZE" in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_SIZE"])))
    sys.exit(main())
