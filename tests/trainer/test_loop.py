"""The loop's small parts; the loop itself runs in tests/integration/."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from disentangled.trainer import loop
from disentangled.trainer.loop import Training, is_due, save
from disentangled.trainer.metrics import MetricSums
from tests.trainer.tiny_run import CPU, build_parts, tiny_config


@pytest.mark.parametrize(
    ("every_steps", "due"), [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (7, [7]), (100, [7]), (0, [7])]
)
def test_is_due_at_its_interval_and_at_the_end(every_steps: int, due: list[int]) -> None:
    assert [step for step in range(1, 8) if is_due(step, every_steps, total_steps=7)] == due


class OneRank:
    rank, world_size, device, is_first = 0, 1, CPU, True


def test_save_writes_each_step_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(loop, "save_checkpoint", lambda run_dir, engines, state, ranks, keep: saved.append(state.step))
    parts = build_parts(tiny_config(shards))
    changes: dict[str, Any] = {"ranks": OneRank(), "step": 3, "saved_step": 3}
    training = Training(
        config=parts.config, dataset_id="", engines=parts.plain_engines(), loader=None,
        validation=parts.validation, validation_windows=np.arange(1), sampling=parts.sampling,
        sums=MetricSums(CPU), log=None, **changes,
    )  # fmt: skip
    save(training)  # it resumed from this very step
    training.step = 4
    save(training)
    save(training)  # told to stop right after its interval
    assert saved == [4]
