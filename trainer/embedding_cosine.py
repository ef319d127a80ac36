"""How alike word embeddings are, step by step: `python -m disentangled.trainer.embedding_cosine --run DIR`.

What: table 1 of arXiv 2111.09543 (section 3.3): the average cosine similarity of all pairs among a tenth of the word
pieces, for E_G, E_D and E_Delta.
- `--run DIR`: a line for each checkpoint that is kept (`checkpoint.keep_every_steps` keeps more). Lines also go to
  DIR/embedding_cosine.jsonl, of which the report draws a picture; those of checkpoints that are gone by now stay.
- `--model DIR`: an export of ours, or any Hugging Face folder with word embeddings, whose E_D alone is measured where
  no generator lies in it. E_Delta = E_D - E_G, of an export that says gdes.
Which tenth follows from `--seed` and the number of word pieces alone, so runs on one tokenizer are compared on the same
ones. Special tokens, byte pieces and rows without a token are no word pieces: they are left out, and counted.
Exit codes: 0 done; 2 the user's mistake, named in one line. A damaged checkpoint is a line on stderr, and passed over.
Used by: users, trainer/report.py. Tested by tests/trainer/test_embedding_cosine.py.
Not here: the formula (model/average_cosine.py), where tables lie (trainer/embedding_tables.py).
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from disentangled.model.average_cosine import AverageCosine, average_cosine
from disentangled.trainer.checkpoint import find_fault, list_checkpoints, step_of, write_atomically
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error
from disentangled.trainer.embedding_tables import read_model_pieces, read_model_tables, read_tables
from disentangled.trainer.export import read_run
from disentangled.trainer.hashing import hash_words
from disentangled.trainer.hf_tokenizer import PieceKind, SentencePieceModel, parse_model
from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.permutation import permute
from disentangled.trainer.run_folder import COSINE_FILE

TABLES = ("E_G", "E_D", "E_Delta")
FRACTION, SEED = 0.1, 1

Row = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """The rows that are compared.

    Attributes:
        rows: int64 [n], of `num_pieces` word pieces.
        left_out: in words, what the table holds beside word pieces.
    """

    rows: Tensor
    num_pieces: int
    left_out: str
    fraction: float
    seed: int

    def key(self) -> Row:
        """What must agree between lines of one file."""
        return {"fraction": self.fraction, "seed": self.seed, "num_rows": len(self.rows)}

    def describe(self) -> str:
        """A sentence above the table."""
        return (
            f"average cosine of all pairs among {len(self.rows):,} of {self.num_pieces:,} word pieces "
            f"(fraction {self.fraction:g}, seed {self.seed}); left out: {self.left_out}"
        )


def choose_rows(num_rows: int, pieces: SentencePieceModel | None, fraction: float, seed: int) -> Choice:
    """Draw the rows of a table [num_rows, D]; without a tokenizer every row counts as a word piece.

    Raises:
        ValueError: a fraction outside of (0, 1], or one that leaves no pair.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"--fraction {fraction:g}: must be above 0 and at most 1, as 0.1 for a tenth")
    if pieces is None:
        candidates, left_out = np.arange(num_rows), "nothing (no spm.model: special tokens are among them)"
    else:
        of_text = (PieceKind.NORMAL, PieceKind.USER_DEFINED)
        candidates = np.array([row for row, kind in enumerate(pieces.kinds) if kind in of_text], dtype=np.int64)
        num_tokens = len(pieces.kinds) + 1  # [MASK] follows the last piece
        num_special, num_unused = num_tokens - len(candidates), num_rows - num_tokens
        if num_unused < 0:
            raise ValueError(f"spm.model has {num_tokens:,} tokens, the table {num_rows:,} rows: they are no pair")
        left_out = f"{num_special:,} special and byte tokens, {num_unused:,} rows without a token"
    num_chosen = round(fraction * len(candidates))
    if num_chosen < 2:
        raise ValueError(
            f"--fraction {fraction:g} of {len(candidates):,} word pieces leaves {num_chosen}: a pair needs two; give a "
            "larger one"
        )
    sizes = np.full(num_chosen, len(candidates), dtype=np.int64)
    drawn = permute(np.arange(num_chosen), sizes, np.repeat(hash_words(seed), num_chosen))
    rows = torch.from_numpy(np.sort(candidates[drawn]))
    return Choice(rows, len(candidates), left_out, fraction, seed)


def measure(tables: Mapping[str, Tensor], choice: Choice, step: int | None) -> Row:
    """A line of the file: averages and rows of zeros by table; no average where fewer than two rows have a direction.

    Raises:
        ValueError: a table has NaN or infinity in a chosen row.
    """
    row: Row = choice.key() if step is None else {"step": step, **choice.key()}
    for name, table in tables.items():
        try:
            found: AverageCosine = average_cosine(table, choice.rows)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        if found.mean is not None:
            row[f"{name}_cosine"] = found.mean
        row[f"{name}_zero_rows"] = found.num_zero_rows
    return row


def measure_run(run_dir: Path, fraction: float, seed: int) -> tuple[str, list[Row]]:
    """The table's head, and a line for each whole checkpoint of a run, oldest first.

    Raises:
        ValueError: no run, or no whole checkpoint; a fraction that leaves no pair.
    """
    run = read_run(run_dir)
    choice = choose_rows(run.generator.vocab_size, parse_model(run.tokenizer), fraction, seed)
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        raise ValueError(f"run {run_dir} holds no checkpoint: train until it has saved one")
    rows = []
    for checkpoint in reversed(checkpoints):
        fault = find_fault(checkpoint)
        try:
            if fault is not None:
                raise ValueError(f"it is damaged: {fault}")
            rows.append(measure(read_tables(checkpoint, run.embedding_sharing), choice, step_of(checkpoint)))
        except (ValueError, OSError, SafetensorError) as error:
            print(f"warning: checkpoint {checkpoint} is passed over ({error})", file=sys.stderr, flush=True)
    if not rows:
        raise ValueError(f"run {run_dir} holds no whole checkpoint (see above): train until it has saved one")
    return f"{run_dir} ({run.embedding_sharing}): {choice.describe()}", rows


def measure_model(place: Path, fraction: float, seed: int) -> tuple[str, list[Row]]:
    """The same of a Hugging Face folder, one line without a step.

    Raises:
        ValueError: no word embeddings; a fraction that leaves no pair.
    """
    tables = read_model_tables(place)
    choice = choose_rows(tables["E_D"].shape[0], read_model_pieces(place), fraction, seed)
    return f"{place}: {choice.describe()}", [measure(tables, choice, None)]


def table_lines(rows: Sequence[Row]) -> list[str]:
    """The rows for a terminal, and a line for each table with rows of zeros."""
    head = f"{'step':>12}" + "".join(f"{name:>10}" for name in TABLES)
    lines, notes = [], []
    for row in rows:
        step = f"{int(row['step']):,}" if "step" in row else ""
        values = (row.get(f"{name}_cosine") for name in TABLES)
        lines.append(f"{step:>12}" + "".join(f"{'-' if value is None else f'{value:.4f}':>10}" for value in values))
        for name in TABLES:
            num_zero_rows, num_rows = int(row.get(f"{name}_zero_rows", 0)), int(row["num_rows"])
            if num_zero_rows:
                average = "" if f"{name}_cosine" in row else ", so there is no average"
                place = f"step {step}: " if step else ""
                notes.append(f"{place}{num_zero_rows:,} of {num_rows:,} rows of {name} are zeros, left out{average}")
    return [head, *lines, *notes]


def earlier_rows(path: Path, rows: Sequence[Row]) -> list[Row]:
    """Lines of a file about checkpoints that are gone by now; those after the newest one are of a past that was undone.

    Raises:
        ValueError: the file holds lines about other rows of the tables.
    """
    found = [row for row in read_rows(path) if "step" in row]
    for row in found:
        for key in ("fraction", "seed", "num_rows"):
            if row[key] != rows[0][key]:
                raise ValueError(
                    f"{path} holds lines of {key} {row[key]:g}, these are of {rows[0][key]:g}: repeat its --fraction "
                    f"{row['fraction']:g} --seed {row['seed']:g}, or give another --output"
                )
    steps = {row["step"] for row in rows}
    return [row for row in found if row["step"] < max(steps) and row["step"] not in steps]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser(
        prog="python -m disentangled.trainer.embedding_cosine", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--run", type=Path, metavar="DIR", help="the run.dir of a training run: all its checkpoints")
    place.add_argument("--model", type=Path, metavar="DIR", help="an export, or another Hugging Face folder")
    parser.add_argument("--fraction", type=float, default=FRACTION, help="of the word pieces (%(default)s; 1: all)")
    parser.add_argument("--seed", type=int, default=SEED, help="says which of them (%(default)s)")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help=f"JSON lines; default: {COSINE_FILE} of the run, none of a model"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        options = parse_arguments(arguments)
        if options.run is not None:
            head, rows = measure_run(options.run, options.fraction, options.seed)
            output = options.output or options.run / COSINE_FILE
            rows = sorted([*earlier_rows(output, rows), *rows], key=lambda row: row["step"])
        else:
            head, rows = measure_model(options.model, options.fraction, options.seed)
            output = options.output
        print(head, *table_lines(rows), sep="\n")
        if output is not None:
            write_atomically(output, "".join(json.dumps(row) + "\n" for row in rows))
    except (ValueError, OSError, SafetensorError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
