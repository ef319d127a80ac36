"""The folder of a fine-tuning run: its settings, checkpoints while it trains, results and predictions when it is done.

    settings.json             the options; the same ones go on, others are refused
    checkpoints/              transformers' own, removed at the end
    results.json              metrics of every set, options, versions; written last: it says that the run is done
    predictions/NAME.jsonl    a line an example of a development or test set
    config.json, model.safetensors, tokenizer files

Used by: run_task.py, search.py. Tested by tests/finetune/test_resume.py.
Not here: training.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from disentangled.finetune.options import FinetuneOptions

SETTINGS, RESULTS, CHECKPOINTS, PREDICTIONS = "settings.json", "results.json", "checkpoints", "predictions"
# the last thing that Trainer writes into a checkpoint
LAST_OF_CHECKPOINT = "trainer_state.json"


def check_folder(options: FinetuneOptions) -> None:
    """Refuse an output that holds something else, or another run.

    Raises:
        ValueError: what differs is named.
    """
    output, record = options.output, options.as_record()
    if output.exists() and not output.is_dir():
        raise ValueError(f"output {output} is a file: give a folder")
    if not (output / SETTINGS).is_file():
        if output.exists() and any(output.iterdir()):
            raise ValueError(f"output {output} is not empty and holds no run of this command: choose another folder")
        return
    earlier = json.loads((output / SETTINGS).read_text(encoding="utf-8"))
    for name in sorted(record.keys() | earlier.keys()):
        if record.get(name) != earlier.get(name):
            raise ValueError(
                f"output {output} holds a run with {name} {earlier.get(name)!r}, not {record.get(name)!r}: choose "
                "another folder, or repeat that run's options to go on with it"
            )


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)


def write_predictions(output: Path, name: str, rows: Iterable[dict[str, Any]]) -> None:
    """Write a set's predictions, a JSON object a line."""
    path = output / PREDICTIONS / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def read_results(output: Path) -> dict[str, Any] | None:
    """The results of a finished run, None where it is not finished."""
    path = output / RESULTS
    if not path.is_file():
        return None
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def newest_checkpoint(output: Path) -> Path | None:
    """The newest whole checkpoint; one that a kill left half-written is passed over."""
    whole = (output / CHECKPOINTS).glob(f"checkpoint-*/{LAST_OF_CHECKPOINT}")
    return max((path.parent for path in whole), key=lambda path: int(path.name.split("-")[1]), default=None)


def remove_checkpoints(output: Path) -> None:
    """Remove what only a stopped run needs."""
    shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
