"""All that a training process has, in one place, and what it may say about itself.

Used by: trainer/assemble.py, which builds it, loop.py, saving.py and rollback.py, which run it.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from disentangled.model.generator import Sampling
from disentangled.trainer.batch import BatchBuilder
from disentangled.trainer.batch_size import consumed_samples
from disentangled.trainer.checkpoint_writer import CheckpointWriter
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.events import EventLog
from disentangled.trainer.faults import RefusalCount
from disentangled.trainer.loader import BatchLoader
from disentangled.trainer.metric_log import MetricLog
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.skipped_samples import Skip, num_skipped_before
from disentangled.trainer.update_guard import Decision
from disentangled.trainer.watchdog import Watchdog


@dataclass
class Training:
    """All that the loop needs, built by trainer/train.py.

    Attributes:
        engine_name: what the engines are, in words.
        skips: samples that the run passes over.
        open_log: the metric log from a step on; None on all ranks but the first, as are log and events.
        peak_flops: of one device, None where it is not known.
        step: updates done so far.
        saved_step: the step of the newest checkpoint that this process wrote or read.
        outcomes: steps done whose refusals are not known yet, and what was decided by model (trainer/outcomes.py).
    """

    config: RunConfig
    dataset_id: str
    engine_name: str
    ranks: Ranks
    engines: EnginePair
    loader: BatchLoader
    validation: BatchBuilder
    validation_windows: NDArray[np.int64]
    sampling: Sampling
    sums: MetricSums
    writer: CheckpointWriter
    watchdog: Watchdog
    refusals: RefusalCount
    skips: list[Skip]
    open_log: Callable[[int], MetricLog] | None
    log: MetricLog | None
    events: EventLog | None
    peak_flops: float | None
    step: int = 0
    saved_step: int | None = None
    outcomes: deque[tuple[int, dict[str, Decision]]] = field(default_factory=deque)

    @property
    def run_dir(self) -> Path:
        """The run's folder."""
        return Path(self.config.run.dir)

    @property
    def consumed_samples(self) -> int:
        """Samples of the order that are behind the run."""
        return self.samples_before(self.step)

    def samples_before(self, step: int) -> int:
        """Samples of the order that are behind the run when a step begins."""
        return consumed_samples(self.config.batch, step) + num_skipped_before(step, self.skips)

    def tell(self, kind: str, text: str, step: int | None = None, **more: Any) -> None:
        """Write an event, of this moment or an earlier step; called by every rank, done by the first."""
        if self.events is not None:
            self.events.write(kind, self.step if step is None else step, text, **more)
