"""A training process put together: from a recipe and a ds_config to all that the loop needs, resumed where it was.

Used by: trainer/train.py. Tested by tests/trainer/test_train.py and tests/integration/.
"""

import functools
import os
import sys
from pathlib import Path

from disentangled.data_prep.shard_schema import SPLITS
from disentangled.kernels.counter_rng import Stream
from disentangled.model.generator import Sampling, banned_ids
from disentangled.trainer.checkpoint import TrainerState, find_checkpoint, load_state, step_of
from disentangled.trainer.checkpoint_writer import CheckpointWriter
from disentangled.trainer.command_line import say
from disentangled.trainer.continue_from import load_continued
from disentangled.trainer.dataset import open_dataset
from disentangled.trainer.device_peaks import peak_of_device
from disentangled.trainer.distributed import Ranks, join_ranks
from disentangled.trainer.ds_config import describe_engine, precision_of
from disentangled.trainer.engine import build_engines, build_models, check_engine_file
from disentangled.trainer.evaluate import choose_windows
from disentangled.trainer.events import EventLog
from disentangled.trainer.faults import RefusalCount
from disentangled.trainer.loader import BatchLoader, Slicing
from disentangled.trainer.metric_log import MetricLog, check_wandb
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.run_config import RunConfig, accumulation_steps, to_dict
from disentangled.trainer.run_data import check_cache, describe_sources, make_builder, make_order, open_windows
from disentangled.trainer.run_folder import claim_run_folder, lock_run_folder, write_run_file
from disentangled.trainer.saving import load_engines
from disentangled.trainer.skipped_samples import SKIPS_FILE, read_skips
from disentangled.trainer.training import Training
from disentangled.trainer.watchdog import Watchdog, find_stacks


def build_training(config: RunConfig, ds_config: dict[str, object]) -> Training:
    """Everything the loop needs, resumed where the run folder has a checkpoint.

    Raises:
        ValueError: anything the user can mend, in one line.
    """
    for key, value in (("data.shards", config.data.shards), ("run.dir", config.run.dir)):
        if not value:
            raise ValueError(f"{key} is not set: add {key}=DIR to the command")
    check_engine_file(config, ds_config)
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
    here = f"{training.engine_name} on {count_ranks(ranks.world_size)}"
    if checkpoint is None or state is None:
        training.tell("start", here, world_size=ranks.world_size)
        return
    if state.consumed_samples != training.consumed_samples:
        raise ValueError(
            f"checkpoint {checkpoint} has used {state.consumed_samples:,} samples, step {state.step} of this run "
            f"{training.consumed_samples:,}: {SKIPS_FILE} is not the one of this run; restore it"
        )
    load_engines(checkpoint, state, training.engines)
    before = f"{state.engine} on {count_ranks(state.world_size)}"
    changed = f" (written by {before}, now {here})" if before != here else ""
    training.tell("resume", f"from {checkpoint.name}{changed}", world_size=ranks.world_size)
    if ranks.is_first:
        training.sums.restore(state.sums)
        say(f"resuming at step {state.step} from {checkpoint}{changed}")


def count_ranks(number: int) -> str:
    """The number of ranks, in words."""
    return "1 rank" if number == 1 else f"{number} ranks"


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
