"""The training loop: batches, step, log, evaluate, save, stop.

What: everything that happens between the first and the last update, on one screen. Progress is the number of updates;
the data's state is the number of samples consumed, which follows from it.
Used by: trainer/train.py. Tested by tests/integration/.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from disentangled.model.generator import Sampling
from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.checkpoint import TrainerState, save_checkpoint
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.evaluate import evaluate, evaluation_sampling
from disentangled.trainer.events import EventLog
from disentangled.trainer.interrupt import Interrupt
from disentangled.trainer.loader import BatchLoader, DataError
from disentangled.trainer.metric_log import MetricLog
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.optim import peak_learning_rates
from disentangled.trainer.pace import Pace
from disentangled.trainer.progress import ProgressBar
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import RunConfig, to_dict
from disentangled.trainer.schedule import learning_rate_factor
from disentangled.trainer.speedometer import Speedometer


@dataclass
class Training:
    """All that the loop needs, built by trainer/train.py.

    Attributes:
        step: updates done so far.
        log, events: None on all ranks but the first.
        peak_flops: of one device, None where it is not known.
        saved_step: the step of the newest checkpoint that this process wrote or read.
    """

    config: RunConfig
    dataset_id: str
    ranks: Ranks
    engines: EnginePair
    loader: BatchLoader
    validation: BatchBuilder
    validation_windows: NDArray[np.int64]
    sampling: Sampling
    accumulation: int
    sums: MetricSums
    log: MetricLog | None
    events: EventLog | None = None
    peak_flops: float | None = None
    step: int = 0
    saved_step: int | None = None

    @property
    def consumed_samples(self) -> int:
        """Samples that the updates done so far have used."""
        return self.step * self.config.batch.global_sequences


def train(training: Training, interrupt: Interrupt) -> bool:
    """Run to the last step; True when done, False when asked to stop (the state is saved in both cases)."""
    total_steps = training.config.schedule.total_steps
    with (
        contextlib.closing(training.loader.steps(training.step, total_steps)) as steps,
        ProgressBar(total_steps, training.step, is_wanted=training.ranks.is_first) as bar,
    ):
        return run_steps(training, steps, interrupt, bar)


def run_steps(training: Training, steps: Iterator[list[MaskedBatch]], interrupt: Interrupt, bar: ProgressBar) -> bool:
    """Run an update for each step's batches; see train.

    Raises:
        DataError: some rank met a damaged shard. All ranks have saved, and raise the same line.
    """
    config, ranks = training.config, training.ranks
    rtd_step = RtdStep(training.engines, config, training.sampling, ranks.world_size)
    speed = start_speedometer(training)
    while training.step < config.schedule.total_steps:
        batches: list[MaskedBatch] = []
        fault: DataError | None = None
        try:
            with speed.waiting_for_data():
                batches = next(steps)
        except DataError as error:
            fault = error
        num_masked, num_live, num_pairs, num_stopping, num_faults = ranks.sum_on_host(
            [
                sum(batch.num_masked for batch in batches),
                sum(batch.num_live for batch in batches),
                sum(batch.num_pairs for batch in batches),
                int(bool(interrupt.reason())),
                int(fault is not None),
            ]
        )
        if num_faults:
            save(training)
            first = next(text for text in ranks.gather(fault and str(fault)) if text)
            raise DataError(f"{first}; saved at step {training.step}: then run the same command again")
        if num_stopping:
            save(training)
            return False
        on_device = [batch.to(ranks.device) for batch in batches]
        rtd_step.run(on_device, GlobalCounts(num_masked, num_live), training.step, training.sums)
        training.step += 1
        speed.add(num_live, num_masked, num_pairs)
        if is_due(training.step, config.log.every_steps, config.schedule.total_steps):
            log_step(training, speed)
        if is_due(training.step, config.evaluate.every_steps, config.schedule.total_steps):
            with speed.paused("evaluation"):
                log_evaluation(training)
        if is_due(training.step, config.checkpoint.every_steps, config.schedule.total_steps):
            with speed.paused("save"):
                save(training)
        bar.update(training.step, speed.remaining_seconds(training.step))
    return True


def is_due(step: int, every_steps: int, total_steps: int) -> bool:
    """Whether something happens after this step: at its interval (0: never) and after the last step."""
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)


def start_speedometer(training: Training) -> Speedometer:
    """Counting from now; how long pauses take is known from before a resume."""
    config, engines = training.config, training.engines
    pace = Pace(config.schedule.total_steps, config.evaluate.every_steps, config.checkpoint.every_steps)
    if training.log is not None:
        pace.learn(training.log.kept_rows)
    return Speedometer(
        engines.generator.module.config,
        engines.discriminator.module.config,
        training.accumulation,
        training.ranks,
        pace,
        training.peak_flops,
    )


def log_step(training: Training, speed: Speedometer) -> None:
    """One line of training metrics; the only place where a step's numbers are read from the device."""
    config, engines = training.config, training.engines
    factor = learning_rate_factor(training.step - 1, config.schedule)
    generator_rate, discriminator_rate = peak_learning_rates(config.optimizer)
    row = {
        "step": training.step,
        **training.sums.take(),
        "delta_ratio": engines.delta_ratio(),
        "generator_gradient_norm": engines.generator.gradient_norm(),
        "discriminator_gradient_norm": engines.discriminator.gradient_norm(),
        "generator_skipped_steps": engines.generator.num_skipped_steps,
        "discriminator_skipped_steps": engines.discriminator.num_skipped_steps,
        "generator_learning_rate": generator_rate * factor,
        "discriminator_learning_rate": discriminator_rate * factor,
        "consumed_samples": training.consumed_samples,
        **speed.take(training.step),
    }
    if training.log is not None:
        training.log.write(row)


def log_evaluation(training: Training) -> None:
    """One line of held-out metrics of both models."""
    metrics = evaluate(
        training.engines,
        training.validation,
        evaluation_sampling(training.sampling),
        training.ranks,
        training.validation_windows,
        training.config.batch.micro_sequences,
    )
    if training.log is not None:
        training.log.write({"step": training.step, **metrics})


def save(training: Training) -> None:
    """Write a checkpoint of this moment, unless it is there already."""
    if training.saved_step == training.step:
        return
    state = TrainerState(
        step=training.step,
        consumed_samples=training.consumed_samples,
        dataset_id=training.dataset_id,
        world_size=training.ranks.world_size,
        sums=training.sums.total().tolist(),
        config=to_dict(training.config),
    )
    save_checkpoint(
        Path(training.config.run.dir), training.engines, state, training.ranks, training.config.checkpoint.keep
    )
    training.saved_step = training.step
    if training.events is not None:
        training.events.write("save", training.step, f"checkpoint {training.step}")
