"""A training process: `deepspeed --module disentangled.trainer.train --recipe R --engine E [section.key=value ...]`.

What: reads the recipe and the DeepSpeed JSON, opens the shards, builds both engines, resumes from the newest whole
checkpoint of run.dir if there is one, and runs the loop. Launch it with `deepspeed`, or with
`python -m disentangled.trainer.launch`, which also survives being told to stop.
Exit codes: 0 done; 85 saved before the end, run the same command again; 86 made no progress (trainer/watchdog.py), run
it again too; 2 something to mend, named in one line.
Used by: users, trainer/launch.py, trainer/demo.py. Tested by tests/integration/.
"""

import argparse
import functools
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
from disentangled.trainer.checkpoint import TrainerState, find_checkpoint, load_state, step_of
from disentangled.trainer.checkpoint_writer import CheckpointWriter
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.continue_from import load_continued
from disentangled.trainer.dataset import Dataset, open_dataset, tokenizer_path
from disentangled.trainer.device_peaks import peak_of_device
from disentangled.trainer.distributed import Ranks, join_ranks, leave_ranks
from disentangled.trainer.ds_config import describe_engine, load_ds_config, precision_of
from disentangled.trainer.engine import build_engines, build_models, check_precision
from disentangled.trainer.evaluate import choose_windows
from disentangled.trainer.events import EventLog
from disentangled.trainer.faults import FaultError, RefusalCount
from disentangled.trainer.foreign_launchers import rank_variables
from disentangled.trainer.interrupt import EXIT_SAVED, Interrupt
from disentangled.trainer.loader import BatchLoader, DataError, Slicing
from disentangled.trainer.loop import train
from disentangled.trainer.metric_log import MetricLog, check_wandb
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.mixture import describe_mixture, mixture_shares
from disentangled.trainer.order import SampleOrder, order_of_sources
from disentangled.trainer.out_of_memory import describe_out_of_memory, is_out_of_memory
from disentangled.trainer.packing import Packing
from disentangled.trainer.run_config import RunConfig, accumulation_steps, load_run_config, to_dict
from disentangled.trainer.run_folder import claim_run_folder, lock_run_folder, write_run_file
from disentangled.trainer.saving import load_engines
from disentangled.trainer.shards import WindowStore
from disentangled.trainer.skipped_samples import SKIPS_FILE, read_skips
from disentangled.trainer.training import Training
from disentangled.trainer.watchdog import Watchdog, find_stacks
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
    os.environ.update(rank_variables(os.environ))
    try:
        return run(arguments)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print_error(MemoryError(describe_out_of_memory(error)))
        return EXIT_USER_ERROR


def run(arguments: Sequence[str] | None) -> int:
    """The same, where memory suffices."""
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
    except (DataError, FaultError, OSError) as error:
        if training.ranks.is_first:
            print_error(error)
        training.tell("stop", str(error))
        leave_ranks()
        return EXIT_USER_ERROR
    ending = "done" if finished else f"stopped ({interrupt.reason() or 'another rank was asked to'}), saved"
    training.tell("done" if finished else "stop", ending)
    if training.log is not None:
        training.log.close()
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
    check_wandb(config.log.wandb)
    dataset = open_dataset(config.data.shards, config.data.cache, config.data.cache_bytes)
    manifest = dataset.manifest
    check_cache(config, manifest)
    accumulation = accumulation_steps(config.batch, int(os.environ.get("WORLD_SIZE", "1")))
    run_dir = claim_run_folder(config, manifest)
    stores = {split: open_windows(config, dataset, split) for split in SPLITS}
    stores["validation"].open_all()  # it is small; training shards are verified when they are first read
    order = make_order(config, stores["train"])
    generator, discriminator = build_models(config, manifest)

    ranks = join_ranks()
    lock_run_folder(run_dir, ranks)
    events = EventLog(run_dir) if ranks.is_first else None
    checkpoint = choose_checkpoint(run_dir, ranks, events)
    state = load_state(checkpoint) if checkpoint else None
    watchdog = Watchdog(run_dir, ranks.rank, config.faults.hang_seconds)
    continued = None
    if checkpoint is None and config.continue_from.checkpoint:
        continued = load_continued(generator, discriminator, config, dataset)
    engines = build_engines(generator, discriminator, config, ds_config, accumulation)
    if ranks.is_first:
        write_run_file(run_dir, config, dataset, ds_config)
        for line in describe_sources(config, stores["train"]) if len(manifest.sources) > 1 else ():
            say(line)
        if continued is not None:
            continued.write(run_dir)
            for line in continued.lines():
                say(line)
    sums = MetricSums(ranks.device)
    step = state.step if state else 0
    first_row = step if checkpoint else -1  # a new run that continues from other weights has a row at step 0
    open_log = functools.partial(
        MetricLog,
        run_dir,
        total_steps=config.schedule.total_steps,
        tensorboard=config.log.tensorboard,
        wandb_config=to_dict(config) if config.log.wandb else None,
    )
    special = manifest.special_ids
    banned = banned_ids(
        engines.generator.module.config.vocab_size,
        manifest.num_pieces,
        (special.pad, special.cls, special.sep, special.unk, special.mask),
        ranks.device,
    )
    training = Training(
        config=config,
        dataset_id=manifest.dataset_id,
        engine_name=describe_engine(ds_config),
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
        writer=CheckpointWriter(run_dir, config.checkpoint, ranks),
        watchdog=watchdog,
        refusals=RefusalCount(config.faults),
        skips=read_skips(run_dir),
        open_log=open_log if ranks.is_first else None,
        log=open_log(first_row) if ranks.is_first else None,
        events=events,
        peak_flops=peak_of_device(ranks.device, precision_of(ds_config)),
        step=step,
        saved_step=step if checkpoint else None,
    )
    resume(training, checkpoint, state)
    return training


def resume(training: Training, checkpoint: Path | None, state: TrainerState | None) -> None:
    """Put the run's state into the engines, and tell what begins."""
    ranks = training.ranks
    here = f"{training.engine_name} on {ranks.world_size} ranks"
    if checkpoint is None or state is None:
        training.tell("start", here, world_size=ranks.world_size)
        return
    if state.consumed_samples != training.consumed_samples:
        raise ValueError(
            f"checkpoint {checkpoint} has used {state.consumed_samples:,} samples, step {state.step} of this run "
            f"{training.consumed_samples:,}: {SKIPS_FILE} is not the one of this run; restore it"
        )
    load_engines(checkpoint, state, training.engines)
    before = f"{state.engine} on {state.world_size} ranks"
    changed = f" (written by {before}, now {here})" if before != here else ""
    training.tell("resume", f"from {checkpoint.name}{changed}", world_size=ranks.world_size)
    if ranks.is_first:
        training.sums.restore(state.sums)
        say(f"resuming at step {state.step} from {checkpoint}{changed}")


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


def choose_checkpoint(run_dir: Path, ranks: Ranks, events: EventLog | None) -> Path | None:
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
    if events is not None:
        for fault in faults:
            print(f"warning: {fault}: using {checkpoint}", file=sys.stderr, flush=True)
            events.write("damaged_checkpoint", step_of(checkpoint), fault)
        for path in find_stacks(run_dir):
            step = step_of(checkpoint) if checkpoint else 0
            events.write("hang", step, f"{path.stem} hung before this start", stacks=path.read_text(encoding="utf-8"))
    return checkpoint


if __name__ == "__main__":
    if torch.get_num_threads() > 1 and "OMP_NUM_THREADS" not in os.environ and "LOCAL_SIZE" in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(os.environ["LOCAL_SIZE"])))
    sys.exit(main())
