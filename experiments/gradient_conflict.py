"""The tug-of-war over the embeddings: `python -m experiments.gradient_conflict --run DIR`.

What: arXiv 2111.09543 (section 3.2) explains why sharing embeddings as ELECTRA does (es) trains slowly by MLM and RTD
pulling E in different directions. Here that is measured. At each checkpoint that is kept, on the same held-out rows,
without dropout: the gradient of L_MLM and that of lambda L_RTD with respect to the table that each of them moves.
- es: both move E; their sum is the update, and where the cosine is negative they cancel.
- gdes: L_RTD moves E_Delta; the same gradient would meet L_MLM's in E_G if it were not stopped.
- nes: L_RTD moves E_D, another table, so that the cosine says nothing about a conflict, only how much alike they are.
Lines go to DIR/gradient_conflict.jsonl. Exit codes: 0 done; 2 the user's mistake, named in one line.
Used by: experiments/embedding_sharing.py. Tested by tests/experiments/test_gradient_conflict.py.
Not here: training (disentangled/trainer), pictures (experiments/sharing_page.py).
"""

# V vocabulary  D hidden width

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator, Sampling, banned_ids
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.checkpoint import list_checkpoints, step_of, write_atomically
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error
from disentangled.trainer.dataset import open_dataset
from disentangled.trainer.evaluate import choose_windows
from disentangled.trainer.export import load_trained_pair
from disentangled.trainer.run_config import RunConfig, from_dict
from disentangled.trainer.run_data import make_builder, open_windows
from disentangled.trainer.run_folder import RUN_FILE, read_run_file

CONFLICT_FILE = "gradient_conflict.jsonl"
SEQUENCES = 512


def measure_run(run_dir: Path, num_sequences: int) -> list[dict[str, float]]:
    """A line for each checkpoint, oldest first.

    Raises:
        ValueError: no run, no checkpoint, a run of plain MLM, shards that are not there.
    """
    if not (run_dir / RUN_FILE).is_file():
        raise ValueError(f"run {run_dir} holds no run ({RUN_FILE} is missing): give a training run's run.dir")
    config = from_dict(read_run_file(run_dir / RUN_FILE)["config"])
    if config.optimizer.update == "mlm":
        raise ValueError(f"run {run_dir} is of plain masked language modelling: it has no second gradient")
    checkpoints = list_checkpoints(run_dir)
    if not checkpoints:
        raise ValueError(f"run {run_dir} holds no checkpoint: train until it has saved one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches, sampling = held_out_batches(config, num_sequences, device)
    rows = []
    for checkpoint in reversed(checkpoints):
        generator, discriminator = (model.to(device) for model in load_trained_pair(run_dir, checkpoint.name))
        from_mlm, from_rtd = gradients(generator, discriminator, batches, sampling, config.optimizer.rtd_lambda)
        rows.append({"step": step_of(checkpoint), "sequences": num_sequences, **compare(from_mlm, from_rtd)})
    return rows


def held_out_batches(config: RunConfig, num_sequences: int, device: torch.device) -> tuple[list[MaskedBatch], Sampling]:
    """The first rows that an evaluation of the run takes, and how the generator draws in it."""
    dataset = open_dataset(config.data.shards, config.data.cache, config.data.cache_bytes)
    store = open_windows(config, dataset, "validation")
    builder = make_builder(config, dataset, store, None, Stream.EVALUATION_MASKING)
    windows = choose_windows(store.num_windows, num_sequences)
    parts = np.array_split(windows, -(-windows.size // config.batch.micro_sequences))
    manifest, special = dataset.manifest, dataset.manifest.special_ids
    vocab_size = config.model.vocab_size or manifest.vocab_size
    ids = (special.pad, special.cls, special.sep, special.unk, special.mask)
    banned = banned_ids(vocab_size, manifest.num_pieces, ids, device)
    return [builder.build(part).to(device) for part in parts], Sampling(
        config.run.seed, Stream.EVALUATION_REPLACEMENT, banned
    )


def gradients(
    generator: Generator,
    discriminator: Discriminator,
    batches: Sequence[MaskedBatch],
    sampling: Sampling,
    rtd_lambda: float,
) -> tuple[Tensor, Tensor]:
    """dL_MLM / dE_G and d(lambda L_RTD) / dE of the table that RTD moves, both [V, D], of means over all batches."""
    num_masked, num_live = (sum(count) for count in zip(*((b.num_masked, b.num_live) for b in batches), strict=True))
    from_mlm, from_rtd = (torch.zeros_like(generator.word_embeddings) for _ in range(2))
    for batch in batches:
        layout = batch.layout()
        made = generator(batch.original_ids, layout, batch.masked_rows, None, sampling, masked_ids=batch.masked_ids)
        from_mlm += torch.autograd.grad(made.mlm_loss_sum / num_masked, generator.word_embeddings)[0]
        rows = None
        if discriminator.embedding_sharing != "nes":
            rows = generator.word_embeddings.detach()[made.corrupted_ids].requires_grad_()
        judged = discriminator(made.corrupted_ids, batch.original_ids, layout, None, rows)
        loss = judged.rtd_loss_sum * (rtd_lambda / num_live)
        if discriminator.embedding_sharing == "es":
            assert rows is not None
            from_rtd.index_add_(0, made.corrupted_ids, torch.autograd.grad(loss, rows)[0])
        else:
            embeddings = discriminator.deberta.embeddings
            table = embeddings.word_embeddings_delta if embeddings.table == "delta" else embeddings.word_embeddings
            from_rtd += torch.autograd.grad(loss, table.weight)[0]
    return from_mlm, from_rtd


def compare(from_mlm: Tensor, from_rtd: Tensor) -> dict[str, float]:
    """How two gradients [V, D] of a table lie to each other; fp64.

    cosine: of the two as wholes. opposed_rows: of the rows that both reach, the share with a negative cosine.
    rtd_to_mlm_norm: |lambda dL_RTD| / |dL_MLM|.
    """
    one, other = from_mlm.double(), from_rtd.double()
    lengths = torch.stack([one.norm(dim=1), other.norm(dim=1)])
    reached = (lengths > 0).all(0)
    norms = one.norm(), other.norm()
    products = (one * other).sum(1)
    return {
        "cosine": float(products.sum() / (norms[0] * norms[1])),
        "opposed_rows": float((products[reached] < 0).double().mean()),
        "rtd_to_mlm_norm": float(norms[1] / norms[0]),
    }


def table_lines(rows: Sequence[dict[str, float]]) -> Iterator[str]:
    """The rows for a terminal."""
    names = ("cosine", "opposed_rows", "rtd_to_mlm_norm")
    yield f"{'step':>10}" + "".join(f"{name:>17}" for name in names)
    for row in rows:
        yield f"{row['step']:>10,}" + "".join(f"{row[name]:>17.4f}" for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(prog="python -m experiments.gradient_conflict", description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, type=Path, metavar="DIR", help="the run.dir of a training run")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="held-out rows (%(default)s)")
    try:
        options = parser.parse_args(arguments)
        if options.sequences < 1:
            raise ValueError(f"--sequences {options.sequences}: it must be at least 1")
        rows = measure_run(options.run, options.sequences)
    except (ValueError, OSError, SafetensorError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    print(*table_lines(rows), sep="\n")
    write_atomically(options.run / CONFLICT_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
