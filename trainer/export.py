"""A trained run as a folder that Hugging Face loads: `python -m disentangled.trainer.export --run DIR --output HF_DIR`.

What: the newest whole checkpoint (`--checkpoint step_N` names another) is read without a GPU and without
torch.distributed, the fp32 master weights where ZeRO keeps some. Written:
- HF_DIR: the discriminator with its whole embedding table (model.safetensors, config.json), the tokenizer's files, and
  export.json, which says what it was made from. The RTD head stays, as `mask_predictions.*`: `AutoModel` reports these
  keys as unexpected and no others; none is missing.
- HF_DIR/generator: the generator; `AutoModel` loads its trunk and passes over `lm_predictions.*` and `mask_decoder.*`.
  Its MLM loss needs our mask decoder: transformers' `DebertaV2ForMaskedLM` has none.
- of a run of plain masked language modelling (`optimizer.update = "mlm"`): HF_DIR is the generator, and that is all.
All is written to a folder beside HF_DIR and renamed when complete. HF_DIR may be new, empty, or an earlier export of
the same run, which is replaced if nothing else was put there; anything else is an error.
Exit codes: 0 done; 2 the user's mistake, named in one line.
Used by: users, trainer/demo.py, trainer/samples.py (`load_trained_pair`). Tested by tests/trainer/test_export.py.
Not here: names and configs (model/hf_checkpoint.py), tokenizer files (trainer/hf_tokenizer.py).
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from disentangled.data_prep.shard_schema import SpecialIds
from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.hf_checkpoint import config_to_hf, discriminator_to_hf, generator_to_hf
from disentangled.trainer.checkpoint import find_checkpoint, find_fault, list_checkpoints, load_state, step_name
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error
from disentangled.trainer.hf_tokenizer import write_tokenizer_files
from disentangled.trainer.model_files import ModelFiles
from disentangled.trainer.run_folder import RUN_FILE, TOKENIZER_FILE, read_run_file
from disentangled.trainer.sections import ModelSection

EXPORT_FILE = "export.json"


@dataclass(frozen=True)
class TrainedRun:
    """What a run folder says about its models.

    Attributes:
        run_id: a hash of run.json, which is written once for each run.
        tokenizer: the content of spm.model.
    """

    run_id: str
    dataset_id: str
    generator: DebertaConfig
    discriminator: DebertaConfig
    embedding_sharing: str
    update: str
    special_ids: SpecialIds
    tokenizer: bytes


@dataclass(frozen=True)
class ExportRecord:
    """export.json: what an export was made from, and all that it wrote (paths relative to it)."""

    run: str
    run_id: str
    checkpoint: str
    dataset_id: str
    embedding_sharing: str
    files: list[str]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(prog="disentangled.trainer.export", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run.dir of a training run")
    parser.add_argument("--output", required=True, type=Path, metavar="HF_DIR", help="the folder to make")
    parser.add_argument(
        "--checkpoint", metavar="step_N", help="the checkpoint to export; default: the newest whole one"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export and say what was written; returns the exit code."""
    try:
        options = parse_arguments(arguments)
        record = export_run(options.run, options.output, options.checkpoint)
    except (ValueError, OSError, SafetensorError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    folder = str(options.output)
    print(f"wrote {folder} from {record.checkpoint} of {record.run}: {', '.join(record.files)}")
    print("from transformers import AutoModel, AutoTokenizer")
    print(f"model, tokenizer = AutoModel.from_pretrained({folder!r}), AutoTokenizer.from_pretrained({folder!r})")
    return 0


def export_run(run_dir: Path, output: Path, checkpoint_name: str | None = None) -> ExportRecord:
    """Write a run's models and tokenizer to `output`; on any exception nothing changes there.

    Raises:
        ValueError: no run, no whole checkpoint, weights that are not finite, an output that holds something else.
    """
    run = read_run(run_dir)
    checkpoint = choose_checkpoint(run_dir, checkpoint_name)
    check_output(output, run)
    weights = {name: read_weights(checkpoint, name) for name in ("generator", "discriminator")}
    for name, state in weights.items():
        check_finite(state, f"the {name} of {checkpoint}")
    with replacing(output) as partial:
        generator = generator_to_hf(weights["generator"])
        if run.update == "mlm":
            write_model(partial, generator, run.generator, run.special_ids)
        else:
            discriminator = discriminator_to_hf(weights["generator"], weights["discriminator"], run.embedding_sharing)
            write_model(partial, discriminator, run.discriminator, run.special_ids)
            write_model(partial / "generator", generator, run.generator, run.special_ids)
        write_tokenizer_files(partial, run.tokenizer, run.special_ids, run.discriminator.max_position_embeddings)
        written = [str(path.relative_to(partial)) for path in sorted(partial.rglob("*")) if path.is_file()]
        record = ExportRecord(
            run=str(run_dir),
            run_id=run.run_id,
            checkpoint=checkpoint.name,
            dataset_id=run.dataset_id,
            embedding_sharing=run.embedding_sharing,
            files=[*written, EXPORT_FILE],
        )
        (partial / EXPORT_FILE).write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
    return record


def load_trained_pair(run_dir: Path, checkpoint_name: str | None = None) -> tuple[Generator, Discriminator]:
    """Both models of a run with the weights of a checkpoint, the newest whole one by default, fp32, on the CPU."""
    run = read_run(run_dir)
    checkpoint = choose_checkpoint(run_dir, checkpoint_name)
    generator = Generator(run.generator, run.special_ids.mask)
    discriminator = Discriminator(run.discriminator, run.embedding_sharing)
    generator.load_state_dict(read_weights(checkpoint, "generator"))
    discriminator.load_state_dict(read_weights(checkpoint, "discriminator"))
    return generator, discriminator


def read_run(directory: Path) -> TrainedRun:
    """Read run.json and the tokenizer.

    Raises:
        ValueError: the folder holds no run, or its tokenizer is not the one that it was trained with.
    """
    if not (directory / RUN_FILE).is_file():
        raise ValueError(f"run {directory} holds no run ({RUN_FILE} is missing): give a training run's run.dir")
    saved = read_run_file(directory / RUN_FILE)
    tokenizer = (directory / TOKENIZER_FILE).read_bytes()
    if hashlib.sha256(tokenizer).hexdigest() != saved["tokenizer_sha256"]:
        raise ValueError(
            f"{directory / TOKENIZER_FILE} is not the tokenizer of this run: copy {TOKENIZER_FILE} of its shards there"
        )
    model = ModelSection(**saved["config"]["model"])
    return TrainedRun(
        run_id=hashlib.sha256((directory / RUN_FILE).read_bytes()).hexdigest(),
        dataset_id=saved["dataset_id"],
        generator=model.generator(saved["vocab_size"]),
        discriminator=model.discriminator(saved["vocab_size"]),
        embedding_sharing=model.embedding_sharing,
        update=saved["config"]["optimizer"]["update"],
        special_ids=SpecialIds(**saved["special_ids"]),
        tokenizer=tokenizer,
    )


def choose_checkpoint(run_dir: Path, name: str | None) -> Path:
    """The newest whole checkpoint, newer damaged ones named on stderr; or the one that is asked for.

    Raises:
        ValueError: there is none, or the one asked for is absent or damaged.
    """
    if name is None:
        newest, faults = find_checkpoint(run_dir)
        if newest is None:
            state = f"no whole checkpoint ({'; '.join(faults)})" if faults else "no checkpoint"
            raise ValueError(f"run {run_dir} holds {state}: train until it has saved one")
        for damage in faults:
            print(f"warning: {damage}: using {newest}", file=sys.stderr, flush=True)
        return newest
    number = re.fullmatch(r"(?:step_)?(\d+)", name)
    known = {path.name: path for path in list_checkpoints(run_dir)}
    chosen = known.get(step_name(int(number[1]))) if number else None
    if chosen is None:
        listed = ", ".join(reversed(known)) or "none"
        raise ValueError(f"run {run_dir} has no checkpoint {name}: choose one of those it has ({listed})")
    fault = find_fault(chosen)
    if fault is not None:
        raise ValueError(f"checkpoint {chosen} is damaged ({fault}): choose another")
    return chosen


def read_weights(checkpoint: Path, model: str) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint's generator or discriminator, by name."""
    files = ModelFiles(checkpoint / model)
    shapes = load_state(checkpoint).models[model].shapes
    return {name: files.read_weight(name, shape) for name, shape in shapes.items()}


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Refuse weights of a run that diverged."""
    broken = [name for name, tensor in state.items() if not bool(torch.isfinite(tensor).all())]
    if broken:
        raise ValueError(
            f"{source} holds NaN or infinity in {broken[0]} ({len(broken)} of {len(state)} tensors): the run diverged; "
            "export an earlier step with --checkpoint"
        )


def write_model(directory: Path, state: dict[str, Tensor], config: DebertaConfig, special_ids: SpecialIds) -> None:
    """Write config.json and model.safetensors."""
    directory.mkdir(exist_ok=True)
    content = config_to_hf(config, cls_token_id=special_ids.cls, sep_token_id=special_ids.sep)
    settings, weights = directory / "config.json", directory / "model.safetensors"
    settings.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    whole = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(whole, weights, metadata={"format": "pt"})
    shutil.copymode(settings, weights)  # safetensors lets only the owner read


def check_output(output: Path, run: TrainedRun) -> None:
    """Refuse an output that holds anything but an earlier export of the same run."""
    if not output.exists():
        return
    if not output.is_dir():
        raise ValueError(f"output {output} is a file: give a folder")
    found = {str(path.relative_to(output)) for path in output.rglob("*") if not path.is_dir()}
    if not found:
        return
    earlier = read_export_record(output)
    if earlier is None:
        raise ValueError(f"output {output} is not empty and holds no export: choose another folder")
    if earlier.run_id != run.run_id:
        raise ValueError(f"output {output} holds an export of another run ({earlier.run}): choose another folder")
    added = sorted(found - set(earlier.files))
    if added:
        raise ValueError(f"output {output} holds what no export wrote ({', '.join(added[:3])}): choose another folder")


def read_export_record(output: Path) -> ExportRecord | None:
    """The record of the export in a folder, None where there is none."""
    try:
        return ExportRecord(**json.loads((output / EXPORT_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """An empty folder beside `output` that takes its place at the end, or vanishes on an exception."""
    output = Path(os.path.realpath(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    partial, former = (output.with_name(f".{output.name}.{kind}-{os.getpid()}") for kind in ("partial", "former"))
    partial.mkdir()
    try:
        yield partial
        if output.exists():
            output.rename(former)
        partial.rename(output)
    finally:
        if former.exists() and not output.exists():
            former.rename(output)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
