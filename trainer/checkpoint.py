"""Checkpoints that are whole or not there, and finding the newest good one.

What: DIR/checkpoints/step_00000100/{generator,discriminator}/ as DeepSpeed writes them, trainer_state.json, and last
manifest.json with every file's size and xxh3_128. A checkpoint is written under a temporary name, renamed when
complete, then named in `latest`. On resume each file is checked first: a checkpoint that was cut short is passed over
by name. All ranks must see one file system.
Used by: trainer/loop.py, trainer/train.py, trainer/export.py. Tested by tests/trainer/test_checkpoint.py and
tests/integration/test_resume.py.
Not here: resuming on another number of ranks.
"""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from disentangled.trainer.distributed import Ranks
from disentangled.trainer.engine import EnginePair

MANIFEST = "manifest.json"
STATE = "trainer_state.json"
MODELS = ("generator", "discriminator")


@dataclass(frozen=True)
class TrainerState:
    """Everything but weights and moments: the data's state is one integer.

    Attributes:
        step: updates done.
        consumed_samples: samples of the order used up.
        dataset_id, world_size: what a resume must find again.
        sums: metrics since the last log line.
        config: the resolved run config.
    """

    step: int
    consumed_samples: int
    dataset_id: str
    world_size: int
    sums: list[float]
    config: dict[str, Any]


def save_checkpoint(run_dir: Path, engines: EnginePair, state: TrainerState, ranks: Ranks, keep: int) -> Path:
    """Write a checkpoint of this step and remove all but the newest `keep`. Called by every rank."""
    root = run_dir / "checkpoints"
    final, partial = root / step_name(state.step), root / f"{step_name(state.step)}.partial"
    if ranks.is_first:
        for unfinished in root.glob("*.partial"):
            shutil.rmtree(unfinished)
        partial.mkdir(parents=True)
    ranks.wait_for_all()
    for name in MODELS:
        getattr(engines, name).deepspeed.save_checkpoint(str(partial), tag=name, save_latest=False)
    ranks.wait_for_all()
    if ranks.is_first:
        (partial / STATE).write_text(json.dumps(asdict(state), indent=1), encoding="utf-8")
        _seal(partial)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _sync_directory(root)
        _write_atomically(root / "latest", final.name)
        for other in outdated_checkpoints(run_dir, final, keep):
            shutil.rmtree(other)
    ranks.wait_for_all()
    return final


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
    return sorted((path for path in (run_dir / "checkpoints").glob("step_*") if not path.suffix), reverse=True)


def outdated_checkpoints(run_dir: Path, newest: Path, keep: int) -> list[Path]:
    """What to remove once `newest` is written: all but `keep`, and those of later steps, which were damaged."""
    checkpoints = list_checkpoints(run_dir)
    place = checkpoints.index(newest)
    return checkpoints[:place] + checkpoints[place + keep :]


def find_fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where every one has its size and hash."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size_bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {expected['size_bytes']}"
        if hash_file(path) != expected["xxh3_128"]:
            return f"{name} has another xxh3_128 than when it was written"
    return None


def load_state(checkpoint: Path) -> TrainerState:
    """The trainer's own state of a checkpoint."""
    return TrainerState(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))


def load_engines(checkpoint: Path, engines: EnginePair) -> None:
    """Weights, moments and loss scales of both engines."""
    for name in MODELS:
        path, _ = getattr(engines, name).deepspeed.load_checkpoint(str(checkpoint), tag=name)
        if path is None:
            raise RuntimeError(f"DeepSpeed could not load {checkpoint / name}: see its log above")


def step_name(step: int) -> str:
    """A checkpoint's folder name; names sort as steps do."""
    return f"step_{step:08d}"


def hash_file(path: Path) -> str:
    """xxh3_128 of a file, hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _seal(directory: Path) -> None:
    """Flush every file to disk, then write the manifest that makes the directory a checkpoint."""
    files = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[str(path.relative_to(directory))] = {"size_bytes": path.stat().st_size, "xxh3_128": hash_file(path)}
    _write_atomically(directory / MANIFEST, json.dumps(files, indent=1))


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
