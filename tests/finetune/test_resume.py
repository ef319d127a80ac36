"""A stopped run ends as one that was never stopped; a finished one is returned; another one is refused."""

import json
from pathlib import Path

import pytest

from disentangled.finetune import run_task
from disentangled.finetune.run_folder import CHECKPOINTS, newest_checkpoint
from disentangled.finetune.run_task import finetune
from disentangled.finetune.task_trainer import ProgressLines
from tests.finetune.tiny_tasks import tiny_options, write_texts


class Stopped(Exception):
    """What stands for a kill."""


class StopAt(ProgressLines):
    """Stops after five of eight updates."""

    def on_step_end(self, args, state, control, **others) -> None:
        if state.global_step == 5:
            raise Stopped


def test_a_stopped_run_ends_as_one_that_was_not(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, dev = write_texts(tmp_path / "a.jsonl", 16, 1), write_texts(tmp_path / "b.jsonl", 16, 2)
    changes = {"max_steps": 8, "batch_size": 4, "evaluate_every_steps": 2, "task_dropout": 0.3, "save_model": True}
    files = {"train": (train,), "validation": (dev,), "text_columns": ("text",)}
    whole, stopped = (
        tiny_options("sequence", pretrained, tmp_path / name, **files | changes) for name in ("whole", "stopped")
    )
    expected = finetune(whole)
    with monkeypatch.context() as patch:
        patch.setattr(run_task, "ProgressLines", StopAt)
        with pytest.raises(Stopped):
            finetune(stopped)
    found = newest_checkpoint(stopped.output)
    assert found is not None and found.name == "checkpoint-4"
    (stopped.output / CHECKPOINTS / "checkpoint-6").mkdir()  # as a kill while saving leaves it
    assert finetune(stopped).metrics == expected.metrics
    assert "going on from" in capsys.readouterr().out
    for name in ("predictions/b.jsonl", "model.safetensors"):
        assert (stopped.output / name).read_bytes() == (whole.output / name).read_bytes()
    assert not (stopped.output / CHECKPOINTS).exists()

    monkeypatch.setattr(run_task, "make_trainer", None)  # nothing may be trained again
    assert finetune(stopped).record == json.loads((stopped.output / "results.json").read_text(encoding="utf-8"))
    other = tiny_options("sequence", pretrained, stopped.output, **files | changes | {"learning_rate": 1e-5})
    with pytest.raises(ValueError, match=r"holds a run with learning_rate 0\.003, not 1e-05"):
        finetune(other)
