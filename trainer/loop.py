"""The training loop: batches, step, log, evaluate, save, stop.

What: everything that happens between the first and the last update, on one screen. Progress is the number of updates;
the data's state is the number of samples consumed, which follows from it.
Used by: trainer/train.py. Tested by tests/integration/.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from disentangled.model.flops import step_flops
from disentangled.model.generator import Sampling
from disentangled.trainer.batch import BatchBuilder, MaskedBatch
from disentangled.trainer.batch_size import consumed_samples
from disentangled.trainer.checkpoint import TrainerState, save_checkpoint
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.evaluate import evaluate, evaluation_sampling
from disentangled.trainer.interrupt import Interrupt
from disentangled.trainer.loader import BatchLoader, DataError
from disentangled.trainer.metrics import MetricLog, MetricSums
from disentangled.trainer.optim import peak_learning_rates
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import RunConfig, to_dict
from disentangled.trainer.schedule import learning_rate_factor


@dataclass
class Training:
    """All that the loop needs, built by trainer/train.py.

    Attributes:
        step: updates done so far.
        log: None on all ranks but the first.
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
    sums: MetricSums
    log: MetricLog | None
    step: int = 0
    saved_step: int | None = None

    @property
    def consumed_samples(self) -> int:
        """Samples that the updates done so far have used."""
        return consumed_samples(self.config.batch, self.step)


def train(training: Training, interrupt: Interrupt) -> bool:
    """Run to the last step; True when done, False when asked to stop (the state is saved in both cases)."""
    with contextlib.closing(training.loader.steps(training.step, training.config.schedule.total_steps)) as steps:
        return run_steps(training, steps, interrupt)


def run_steps(training: Training, steps: Iterator[list[MaskedBatch]], interrupt: Interrupt) -> bool:
    """Run an update for each step's batches; see train.

    Raises:
        DataError: some rank met a damaged shard. All ranks have saved, and raise the same line.
    """
    config, ranks = training.config, training.ranks
    rtd_step = RtdStep(training.engines, config, training.sampling, ranks.world_size)
    speed = Speedometer()
    while training.step < config.schedule.total_steps:
        batches: list[MaskedBatch] = []
        fault: DataError | None = None
        try:
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
        speed.add(len(batches) * ranks.world_size, num_live, num_masked, num_pairs)
        if is_due(training.step, config.log.every_steps, config.schedule.total_steps):
            log_step(training, speed)
        if is_due(training.step, config.evaluate.every_steps, config.schedule.total_steps):
            log_evaluation(training)
            speed.restart()
        if is_due(training.step, config.checkpoint.every_steps, config.schedule.total_steps):
            save(training)
            speed.restart()
    return True


def is_due(step: int, every_steps: int, total_steps: int) -> bool:
    """Whether something happens after this step: at its interval (0: never) and after the last step."""
    return step == total_steps or (every_steps > 0 and step % every_steps == 0)


class Speedometer:
    """Tokens and seconds since the last log line; time spent in evaluation and saving does not count."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new line here."""
        self._steps = self._passes = self._tokens = self._masked = self._pairs = 0
        self._started = time.perf_counter()

    def add(self, num_passes: int, num_tokens: int, num_masked: int, num_pairs: int) -> None:
        """Count one step over all ranks: micro-batches, live and masked tokens, query-key pairs inside documents."""
        self._steps += 1
        self._passes += num_passes
        self._tokens += num_tokens
        self._masked += num_masked
        self._pairs += num_pairs

    def take(self, training: Training) -> dict[str, float]:
        """Rates since the last line, which begins anew. TFLOP/s are of all ranks together, padding not counted."""
        seconds = max(1e-9, time.perf_counter() - self._started)
        steps, passes = max(1, self._steps), max(1, self._passes)
        flops = passes * step_flops(
            training.engines.generator.module.config,
            training.engines.discriminator.module.config,
            self._tokens // passes,
            self._masked // passes,
            self._pairs // max(1, self._tokens),  # the mean length that a token's queries meet
        )
        rates = {
            "tokens_per_second": self._tokens / seconds,
            "seconds_per_step": seconds / steps,
            "achieved_tflops": flops / seconds / 1e12,
        }
        self.restart()
        return rates


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
        **speed.take(training),
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
