"""Checkpoints that are whole or not there, and finding the newest good one.

What: DIR/checkpoints/step_00000100/{generator,discriminator}/rank_*.safetensors (trainer/model_files.py),
trainer_state.json, and last manifest.json with every file's size and xxh3_128. A checkpoint is written under a
temporary name, renamed when complete, then named in `latest`. On resume each file is checked first: a checkpoint that
was cut short is passed over by name. All ranks must see one file system.
Used by: trainer/checkpoint_writer.py, train.py, export.py. Tested by tests/trainer/test_checkpoint.py and
tests/integration/test_resume.py.
Not here: when and how it is written (saving.py, checkpoint_writer.py), what is in the models' files (engine_state.py).
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from disentangled.trainer.engine_state import EngineRecord
from disentangled.trainer.update_guard import NormMean

FORMAT_VERSION = 2  # 1 was DeepSpeed's own files
MANIFEST = "manifest.json"
STATE = "trainer_state.json"
MODELS = ("generator", "discriminator")
NUM_HASHERS = 8  # xxhash lets other threads run


@dataclass(frozen=True)
class TrainerState:
    """Everything but weights and moments: the data's state is one integer.

    Attributes:
        step: updates done.
        consumed_samples: samples of the order used up.
        dataset_id: what a resume must find again.
        world_size, engine: what wrote it; another number of ranks and another ZeRO stage can read it.
        sums: metrics since the last log line.
        config: the resolved run config.
        models: by name, what each engine has beside its tensors.
        norms: by name, the running mean of each model's gradient norms.
    """

    step: int
    consumed_samples: int
    dataset_id: str
    world_size: int
    engine: str
    sums: list[float]
    config: dict[str, Any]
    models: dict[str, EngineRecord]
    norms: dict[str, NormMean]
    format_version: int = field(default=FORMAT_VERSION)


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its path relative to it, size and hash."""

    name: str
    size_bytes: int
    xxh3_128: str


def find_checkpoint(run_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and one line for each newer one that is damaged."""
    faults: list[str] = []
    for path in list_checkpoints(run_dir):
        fault = find_fault(path)
        if fault is None:
            return path, faults
        faults.append(f"checkpoint {path} is damaged ({fault})")
    return None, faults


def list_checkpoints(run_dir: Path) -> list[Path]:
    """All finished checkpoints, newest first."""
    return sorted((path for path in checkpoints_of(run_dir).glob("step_*") if not path.suffix), reverse=True)


def outdated_checkpoints(run_dir: Path, newest: Path, keep_last: int, keep_every_steps: int) -> list[Path]:
    """What to remove after writing `newest`: all but the last, those at the interval; damaged ones of later steps."""
    checkpoints = list_checkpoints(run_dir)
    place = checkpoints.index(newest)
    older = checkpoints[place + keep_last :]
    return checkpoints[:place] + [
        path for path in older if keep_every_steps == 0 or step_of(path) % keep_every_steps != 0
    ]


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where every one has its size and hash."""
    try:
        files: dict[str, dict[str, Any]] = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size_bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size_bytes']}"
    with ThreadPoolExecutor(NUM_HASHERS) as hashers:
        hashes = hashers.map(hash_file, (checkpoint / name for name in files))
        for (name, expected), found in zip(files.items(), hashes, strict=True):
            if found != expected["xxh3_128"]:
                return f"{name} has another xxh3_128 than when it was written"
    return None


def load_state(checkpoint: Path) -> TrainerState:
    """The trainer's own state of a checkpoint.

    Raises:
        ValueError: it is of another version of this program.
    """
    content = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    version = content.get("format_version", 1)
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {checkpoint} has format {version}, this program reads {FORMAT_VERSION}: go on with the "
            "program that wrote it, or begin in another run.dir"
        )
    content["models"] = {name: _engine_record(values) for name, values in content["models"].items()}
    content["norms"] = {name: NormMean(**values) for name, values in content["norms"].items()}
    return TrainerState(**content)


def write_state(directory: Path, state: TrainerState) -> None:
    """Write the trainer's own state into a checkpoint that is being made."""
    (directory / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")


def seal(directory: Path, files: Sequence[FileRecord]) -> None:
    """Write the manifest, which makes the directory a checkpoint; `files` are on disk already."""
    content = {file.name: {"size_bytes": file.size_bytes, "xxh3_128": file.xxh3_128} for file in files}
    write_atomically(directory / MANIFEST, json.dumps(content, indent=1))


def settle(path: Path, root: Path) -> FileRecord:
    """Flush a file to disk and record it relative to `root`."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return FileRecord(str(path.relative_to(root)), path.stat().st_size, hash_file(path))


def checkpoints_of(run_dir: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run_dir / "checkpoints"


def step_name(step: int) -> str:
    """A checkpoint's folder name; names sort as steps do."""
    return f"step_{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(checkpoint.name.removeprefix("step_"))


def hash_file(path: Path) -> str:
    """xxh3_128 of a file, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is there as a whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _engine_record(values: Mapping[str, Any]) -> EngineRecord:
    counters = {key: (value, is_tensor) for key, (value, is_tensor) in values["counters"].items()}
    return EngineRecord(**{**values, "counters": counters})
