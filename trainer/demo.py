"""The whole road in minutes: text, tokenizer, shards, two-process pre-training, a checkpoint that Hugging Face loads.

What: `make demo` without arguments trains on English that every Python carries (the language reference in
`pydoc_data.topics` and the docstrings of the standard library, about 2 MB); `--text PATH` takes the user's own. Every
stage is the command that a user would type, printed before it runs. One process per GPU, or two on a CPU.
Used by: `make demo`. Tested by tests/integration/test_demo.py.
"""

import argparse
import ast
import json
import os
import pydoc_data.topics
import re
import shlex
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from disentangled.data_prep.shard_schema import Manifest, load_manifest
from disentangled.trainer.command_line import EXIT_USER_ERROR, print_error
from disentangled.trainer.interrupt import EXIT_SAVED
from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.report import write_report
from disentangled.trainer.samples import show_samples

NUM_PROCESSES_ON_CPU = 2
# pieces that a text of so many bytes supports; SentencePiece refuses more than a text allows
PIECES_BY_TEXT_BYTES = ((1_000_000, 2048), (300_000, 1024), (0, 512))
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code of the first stage that fails."""
    parser = argparse.ArgumentParser(prog="disentangled.trainer.demo", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--text", type=Path, help="a .txt, .jsonl, .gz, .zst file or a folder; default: Python's own English"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs"), help="where the demo's folder goes (default: runs)"
    )
    parser.add_argument("--vocab-size", type=int, help="pieces of the tokenizer; default: by the size of the text")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="recipe keys to change")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        if options.text is not None and not options.text.exists():
            raise ValueError(f"text {options.text} does not exist: give a file or a folder")
        folder = next_free_folder(options.output)
        run_stages(options.text, folder, options.vocab_size, options.overrides)
        report = write_report(folder / "run", load_manifest(folder / "shards").validation_unigram_cross_entropy_nats)
        print_ending(folder, report, time.perf_counter() - started)
    except subprocess.CalledProcessError as error:
        ending = "was stopped, run it again to go on" if error.returncode == EXIT_SAVED else "failed"
        print(f"this command {ending} (exit code {error.returncode}): {shlex.join(error.cmd)}", file=sys.stderr)
        return error.returncode if error.returncode > 0 else 1
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    return 0


def run_stages(text: Path | None, folder: Path, num_pieces: int | None, overrides: Sequence[str]) -> None:
    """Text to shards to run to Hugging Face folder."""
    if text is None:
        text = folder / "python_english.txt"
        write_python_english(text)
    shards, run, exported = folder / "shards", folder / "run", folder / "huggingface"
    pieces = str(num_pieces or pieces_for(text))
    run_stage("1/3 text to shards", "data_prep.build_corpus", "--input", str(text), "--output", str(shards),
              "--train-tokenizer", "--vocab-size", pieces, "--validation-fraction", "0.05", "--seed", "1")  # fmt: skip
    num_gpus = torch.cuda.device_count()
    run_stage("2/3 pre-training", "trainer.launch", "--num_accelerators", str(num_gpus or NUM_PROCESSES_ON_CPU), "--",
              "--recipe", "tiny", "--engine", "zero2_bf16" if num_gpus else "fp32_cpu",
              f"data.shards={shards}", f"run.dir={run}", *overrides)  # fmt: skip
    run_stage("3/3 export", "trainer.export", "--run", str(run), "--output", str(exported))


def run_stage(title: str, module: str, *arguments: str) -> None:
    """Run one of our commands as a user would, in a process of its own; a Ctrl-C is the command's to handle."""
    command = [sys.executable, "-m", f"disentangled.{module}", *arguments]
    print(f"\n== {title}\n$ {shlex.join(['.venv/bin/python', *command[1:]])}", flush=True)
    child = subprocess.Popen(command, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:
            continue
    if code:
        raise subprocess.CalledProcessError(code, command)


def next_free_folder(parent: Path) -> Path:
    """A new folder demo, demo-2, demo-3, ... below `parent`."""
    number = 1
    while True:
        folder = parent / ("demo" if number == 1 else f"demo-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return folder


def write_python_english(path: Path) -> None:
    """Write the language reference and the standard library's docstrings as text, one document per topic or module."""
    library = Path(sysconfig.get_paths()["stdlib"])
    documents = list(pydoc_data.topics.topics.values())
    for source in sorted(library.rglob("*.py")):
        if not SKIPPED_FOLDERS & set(source.relative_to(library).parts):
            documents.append("\n".join(read_docstrings(source)))
    kept = [re.sub(r"\n\s*\n", "\n", document.strip()) for document in documents]
    path.write_text("\n\n".join(document for document in kept if document) + "\n", encoding="utf-8")


def read_docstrings(source: Path) -> list[str]:
    """All docstrings of a Python file; none where it cannot be parsed."""
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError):
        return []
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, owners)]
    return [docstring for docstring in docstrings if docstring]


def pieces_for(text: Path) -> int:
    """A vocabulary size that the text supports."""
    files = [text] if text.is_file() else [path for path in text.rglob("*") if path.is_file()]
    num_bytes = sum(path.stat().st_size for path in files)
    return next(pieces for least_bytes, pieces in PIECES_BY_TEXT_BYTES if num_bytes >= least_bytes)


def print_ending(folder: Path, report: Path, seconds: float) -> None:
    """What was learnt, in a few lines, and what to type next."""
    manifest: Manifest = load_manifest(folder / "shards")
    held_out = [row for row in read_rows(folder / "run" / "metrics.jsonl") if "validation_mlm_loss" in row][-1]
    unigram = manifest.validation_unigram_cross_entropy_nats
    loss, area = held_out["validation_mlm_loss"], held_out["validation_rtd_auc"]
    print(f"\n== What was learnt (held-out text, {seconds / 60:.1f} minutes)")
    print(f"generator      MLM loss {loss:.2f} nats; guessing by frequency alone: {unigram:.2f}")
    print(f"discriminator  RTD AUC {area:.3f}; guessing: 0.500\n")
    show_samples(folder / "run", folder / "shards")
    steps = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))["config"]["schedule"]["total_steps"]
    print(f"""
model    {folder / "huggingface"}
curves   {report}
Next, your own text ({steps} steps here; see recipes/ for real sizes):
  make demo TEXT=path/to/text""")


if __name__ == "__main__":
    sys.exit(main())
