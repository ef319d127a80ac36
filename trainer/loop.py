"""The training loop: batches, step, log, evaluate, save, stop.

What: everything that happens between the first and the last update, on one screen. Progress is the number of updates;
the data's state is the number of samples consumed, which follows from it.
Used by: trainer/train.py. Tested by tests/integration/.
"""

import contextlib
import math
from collections.abc import Iterator
from enum import Enum, auto

from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.evaluate import evaluate, evaluation_sampling
from disentangled.trainer.interrupt import Interrupt
from disentangled.trainer.loader import DataError
from disentangled.trainer.optim import peak_learning_rates
from disentangled.trainer.outcomes import keep_outcome, note_outcomes
from disentangled.trainer.pace import Pace
from disentangled.trainer.progress import ProgressBar
from disentangled.trainer.rollback import roll_back
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.saving import finish_save, save_beside, save_now
from disentangled.trainer.schedule import learning_rate_factor
from disentangled.trainer.speedometer import Speedometer
from disentangled.trainer.training import Training


def train(training: Training, interrupt: Interrupt) -> bool:
    """Run to the last step; True when done, False when asked to stop (the state is saved in both cases).

    Raises:
        DataError, FaultError: all ranks raise the same line; what was reached is saved.
        SaveError: the last checkpoint could not be written.
    """
    total_steps = training.config.schedule.total_steps
    if training.saved_step is None and training.config.continue_from.checkpoint:
        log_evaluation(training)  # what the weights that the run continues from are worth here
    with (
        contextlib.closing(training.watchdog),
        ProgressBar(total_steps, training.step, is_wanted=training.ranks.is_first) as bar,
    ):
        while True:
            with contextlib.closing(training.loader.steps(training.step, total_steps, training.skips)) as steps:
                ending = run_steps(training, steps, interrupt, bar)
            if ending is not Ending.ROLLED_BACK:
                return ending is Ending.DONE


class Ending(Enum):
    """Why a stretch of steps ended."""

    DONE = auto()
    STOPPED = auto()
    ROLLED_BACK = auto()


def run_steps(training: Training, steps: Iterator[list[MaskedBatch]], interrupt: Interrupt, bar: ProgressBar) -> Ending:
    """Run an update for each step's batches; see train."""
    config, ranks = training.config, training.ranks
    rtd_step = RtdStep(training.engines, config, training.sampling, ranks.world_size)
    speed = start_speedometer(training)
    while training.step < config.schedule.total_steps:
        training.watchdog.progress()
        batches: list[MaskedBatch] = []
        fault: DataError | None = None
        try:
            with speed.waiting_for_data():
                batches = next(steps)
        except DataError as error:
            fault = error
        num_masked, num_live, num_pairs, num_stopping, num_faults, num_written = ranks.sum_on_host(
            [
                sum(batch.num_masked for batch in batches),
                sum(batch.num_live for batch in batches),
                sum(batch.num_pairs for batch in batches),
                int(bool(interrupt.reason())),
                int(fault is not None),
                int(training.writer.is_written),
            ]
        )
        if num_written == ranks.world_size:
            finish_save(training)
        if num_faults:
            first = next(text for text in ranks.gather(fault and str(fault)) if text)
            training.tell("data_error", first)
            save_now(training)
            raise DataError(f"{first}; saved at step {training.step}: then run the same command again")
        if num_stopping:
            save_now(training)
            return Ending.STOPPED
        on_device = [batch.to(ranks.device) for batch in batches]
        rests = config.discriminator_rests(training.step)
        rtd_step.run(on_device, GlobalCounts(num_masked, num_live), training.step, training.sums)
        keep_outcome(training)
        training.step += 1
        speed.add(len(batches) * ranks.world_size, num_live, num_masked, num_pairs, rests)
        logs = is_due(training.step, config.log.every_steps, config.schedule.total_steps)
        saves = is_due(training.step, config.checkpoint.every_steps, 0)
        note_outcomes(training, but_last=0 if logs or saves else 1)
        if training.refusals.is_too_many:
            roll_back(training)
            return Ending.ROLLED_BACK
        if logs:
            log_step(training, speed)
        if is_due(training.step, config.evaluate.every_steps, config.schedule.total_steps):
            with speed.paused("evaluation"):
                log_evaluation(training)
        if saves and not training.refusals.in_row:
            with speed.paused("save"):
                save_beside(training)
        bar.update(training.step, speed.remaining_seconds(training.step))
    save_now(training)
    return Ending.DONE


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
        training.ranks,
        pace,
        training.peak_flops,
    )


def log_step(training: Training, speed: Speedometer) -> None:
    """One line of training metrics; the only place where a step's numbers are read from the device."""
    config, engines = training.config, training.engines
    factor = learning_rate_factor(training.step - 1, config.schedule)
    generator_rate, discriminator_rate = peak_learning_rates(config.optimizer)
    norms = {
        "generator_gradient_norm": engines.generator.gradient_norm(),
        "discriminator_gradient_norm": engines.discriminator.gradient_norm(),
    }
    row = {
        "step": training.step,
        **training.sums.take(),
        "delta_ratio": engines.delta_ratio(),
        **{name: norm for name, norm in norms.items() if math.isfinite(norm)},  # JSON knows no NaN
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
        training.watchdog.progress,
        judges=training.config.optimizer.update != "mlm",
    )
    if training.log is not None:
        training.log.write({"step": training.step, **metrics})
