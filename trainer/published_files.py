"""The files that a continued run begins with: found, read, and refused where it is not clear which are meant.

What: `open_published` takes a folder or a weight file and finds, beside the discriminator's weights, the generator's,
config.json and spm.model. It knows
- one of our runs (run.json and checkpoints; also one checkpoint of it, RUN/checkpoints/step_N);
- our export, and any Hugging Face folder: model.safetensors or pytorch_model.bin, whole or in numbered pieces; the
  generator in generator/ or pytorch_model.generator.bin;
- the original code's pytorch.model-NNNNNN.bin.
Two files that could both be meant are an error that names them. Weights are read with `weights_only`: no code of a
published file is run.
Used by: trainer/continue_from.py. Tested by tests/trainer/test_published_files.py.
Not here: what the tensors are called (model/published_names.py).
"""

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from disentangled.model.config import DebertaConfig
from disentangled.model.hf_checkpoint import config_from_hf, discriminator_to_hf, generator_to_hf
from disentangled.model.pair_from_hf import PublishedModel
from disentangled.trainer.checkpoint import hash_file
from disentangled.trainer.export import choose_checkpoint, read_run, read_weights
from disentangled.trainer.run_folder import RUN_FILE, TOKENIZER_FILE

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
ORIGINAL_WEIGHTS = "pytorch.model-*.bin"
GENERATORS_BESIDE = ("generator", "pytorch_model.generator.bin")
CHECKPOINT_KEY, GENERATOR_KEY = "continue_from.checkpoint", "continue_from.generator"


@dataclass(frozen=True)
class Published:
    """A pair as it was published.

    Attributes:
        kind: what was found, for the report.
        generator: None where only a discriminator was published.
        configs: of what config.json says, by model; empty where there is none.
        tokenizer: spm.model, None where there is none.
        hashes: xxh3_128 of each weight file by name: what a record of the run knows them by.
        order: (dataset_id, run.seed, data.sequence_length) of one of our runs, whose sample order this was.
    """

    kind: str
    discriminator: PublishedModel
    generator: PublishedModel | None
    configs: dict[str, DebertaConfig]
    tokenizer: Path | None
    hashes: dict[str, str]
    order: tuple[str, int, int] | None = None


def open_published(checkpoint: Path, generator: Path | None) -> Published:
    """Read everything at `checkpoint`, a folder or file; `generator` is one too, None: what lies beside.

    Raises:
        ValueError: nothing there, something that is no checkpoint, or more than one that could be meant.
    """
    if not checkpoint.exists():
        raise ValueError(
            f"{CHECKPOINT_KEY} {checkpoint} does not exist: give a run's folder, a Hugging Face folder or a weight file"
        )
    for run_dir, name in ((checkpoint, None), (checkpoint.parent.parent, checkpoint.name)):
        if (run_dir / RUN_FILE).is_file() and checkpoint.is_dir():
            if generator is not None:
                raise ValueError(f"{CHECKPOINT_KEY} {checkpoint} is a run, which has a generator: drop {GENERATOR_KEY}")
            return _open_run(run_dir, name)
    weights = find_weights(checkpoint, CHECKPOINT_KEY)
    folder = weights.parent
    files = [weights]
    beside = [folder / name for name in GENERATORS_BESIDE if (folder / name).exists()]
    if generator is None and len(beside) > 1:
        raise ValueError(f"{folder} holds two generators ({_names(beside)}): name one with {GENERATOR_KEY}")
    if generator is None and beside:
        generator = beside[0]
    if generator is not None:
        if not generator.exists():
            raise ValueError(f"{GENERATOR_KEY} {generator} does not exist: give its folder or weight file")
        files.append(find_weights(generator, GENERATOR_KEY))
    if len(files) == 2 and files[0].samefile(files[1]):
        raise ValueError(f"{GENERATOR_KEY} and {CHECKPOINT_KEY} are the same file, {weights}: give the generator's own")
    configs = {}
    for model, file in zip(("discriminator", "generator"), files, strict=False):
        # the original code keeps both models' weights in one folder with the discriminator's config.json
        if (file.parent / "config.json").is_file() and (model == "discriminator" or file.parent != folder):
            configs[model] = _read_config(file.parent / "config.json")
    return Published(
        kind="discriminator and generator" if len(files) == 2 else "discriminator alone",
        discriminator=PublishedModel(weights.name, read_tensors(weights)),
        generator=PublishedModel(_relative(files[1], folder), read_tensors(files[1])) if len(files) == 2 else None,
        configs=configs,
        tokenizer=_find_tokenizer(files),
        hashes={_relative(file, folder): hash_file(file) for file in files},
    )


def find_weights(place: Path, key: str) -> Path:
    """The one weight file of a folder, or the file itself."""
    if place.is_file():
        return place
    found = [place / name for name in WEIGHT_FILES if (place / name).is_file()]
    found += sorted(place.glob(ORIGINAL_WEIGHTS))
    if not found:
        known = ", ".join((*WEIGHT_FILES[::2], ORIGINAL_WEIGHTS))
        raise ValueError(f"{key} {place} holds no weights and no run: give a folder with one of {known} or {RUN_FILE}")
    if len(found) > 1:
        raise ValueError(f"{key} {place} holds more than one weight file ({_names(found)}): give the one that is meant")
    return found[0]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a weight file, or of the pieces that an index.json names."""
    if file.name.endswith(".index.json"):
        pieces = sorted(set(json.loads(file.read_text(encoding="utf-8"))["weight_map"].values()))
        absent = [name for name in pieces if not (file.parent / name).is_file()]
        if absent:
            raise ValueError(f"{file} names {absent[0]}, which is missing: fetch all {len(pieces)} pieces")
        return {name: tensor for piece in pieces for name, tensor in read_tensors(file.parent / piece).items()}
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ValueError(f"{file} cannot be read as weights ({reason}): fetch it again") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{file} holds something else than tensors by name: give a state dict")
    return content


def _open_run(run_dir: Path, name: str | None) -> Published:
    """The newest whole checkpoint of one of our runs, or the one of this name."""
    run = read_run(run_dir)
    checkpoint = choose_checkpoint(run_dir, name)
    generator, discriminator = (read_weights(checkpoint, model) for model in ("generator", "discriminator"))
    saved = json.loads((run_dir / RUN_FILE).read_text(encoding="utf-8"))["config"]
    return Published(
        kind=f"{checkpoint.name} of a run",
        discriminator=PublishedModel(
            f"{checkpoint.name}/discriminator", discriminator_to_hf(generator, discriminator, run.embedding_sharing)
        ),
        generator=PublishedModel(f"{checkpoint.name}/generator", generator_to_hf(generator)),
        configs={"discriminator": run.discriminator, "generator": run.generator},
        tokenizer=run_dir / TOKENIZER_FILE,
        hashes={"manifest.json": hash_file(checkpoint / "manifest.json")},
        order=(run.dataset_id, saved["run"]["seed"], saved["data"]["sequence_length"]),
    )


def _read_config(path: Path) -> DebertaConfig:
    try:
        return config_from_hf(json.loads(path.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again") from error
    except ValueError as error:
        raise ValueError(f"{path.parent}/{error}") from error


def _find_tokenizer(files: list[Path]) -> Path | None:
    """The one spm.model beside the weights; two that differ are an error."""
    found = {path: hash_file(path) for path in (file.parent / TOKENIZER_FILE for file in files) if path.is_file()}
    if len(set(found.values())) > 1:
        raise ValueError(f"two tokenizers lie beside the weights ({' and '.join(map(str, found))}): the models differ")
    return next(iter(found), None)


def _relative(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file)


def _names(paths: list[Path]) -> str:
    return " and ".join(path.name for path in paths)
