"""Under DeepSpeed's launcher two processes train one model, write one folder, and refuse with one line."""

import json
import sys
from pathlib import Path

import pytest

from tests.finetune.tiny_tasks import write_texts
from tests.launching import Finished, run_command

LAUNCHER = (sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "29731")


def launch(model: Path, folder: Path, engine: str, batch_size: int = 8) -> Finished:
    train = write_texts(folder / "train.jsonl", 32, 1)
    words = ("--task", "sequence", "--train", train, "--validation", train, "--text-columns", "text", "--model", model)
    sizes = ("--output", folder / "run", "--max-steps", 4, "--warmup-steps", 1, "--batch-size", batch_size)
    command = ("--module", "tests.finetune.launched", *words, *sizes, "--ds-config", engine, "--learning-rate", "1e-3")
    return run_command(*LAUNCHER, *map(str, command))


@pytest.mark.slow
def test_two_processes_train_one_model(pretrained: Path, tmp_path: Path) -> None:
    finished = launch(pretrained, tmp_path, "fp32_cpu")
    assert finished.code == 0, finished
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert 0 <= results["metrics"]["train"]["accuracy"] <= 1
    assert finished.stdout.count("development set:") == 1
    assert (tmp_path / "run" / "model.safetensors").is_file()
    assert len((tmp_path / "run" / "predictions" / "train.jsonl").read_text(encoding="utf-8").splitlines()) == 32


@pytest.mark.slow
def test_a_mistake_is_one_line(pretrained: Path, tmp_path: Path) -> None:
    finished = launch(pretrained, tmp_path, "fp32_cpu", batch_size=9)
    assert finished.code != 0
    lines = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: batch_size is 9: it must be a multiple of the 2 processes"], finished
    assert "Traceback" not in finished.stderr
