"""What a run will see: `python -m disentangled.trainer.plan --recipe R data.shards=DIR [section.key=value ...]`.

What: rows, how full they are, steps of an epoch and epochs of each source, before any training; and one sample as the
run packs and masks it. It also leaves the plan beside the dataset, so that a run on very many shards starts at once:
`--processes N` packs N shards at a time. `--memory --engine E --ranks N` says what each of N ranks will hold in memory;
where the recipe has a vocabulary size, that needs no shards. `--probe-steps K --engine E --ranks N` times K steps here.
Used by: users. Tested by tests/trainer/test_plan.py.
Not here: how memory is planned (memory_plan.py), how steps are timed (probe.py), what the network carries
(network_plan.py).
"""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import sentencepiece
import torch
from deepspeed.accelerator import get_accelerator

from disentangled.data_prep.shard_schema import Manifest
from disentangled.kernels.counter_rng import Stream
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error
from disentangled.trainer.dataset import open_dataset, tokenizer_path
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.memory_plan import describe_memory, plan_memory
from disentangled.trainer.probe_here import probe_here
from disentangled.trainer.run_config import RunConfig, load_run_config
from disentangled.trainer.run_data import describe_sources, make_builder, make_order, open_windows
from disentangled.trainer.sections import BatchSection
from disentangled.trainer.shards import WindowStore

BAR_CELLS = 64
TEXT_CELLS = 48
TABLE_HEAD = f"{'tokens a row':>12} {'rows':>12} {'documents a row':>16} {'real tokens':>12} {'steps an epoch':>15}"


def describe_rows(config: RunConfig, store: WindowStore) -> str:
    """A line of the table: what packing gives at the config's sequence length."""
    length, rows = config.data.sequence_length, store.num_windows
    full = store.num_tokens / (rows * length)
    steps = -(-rows // config.batch.global_sequences)
    return f"{length:12,} {rows:12,} {store.num_pieces / rows:16.2f} {full:12.2%} {steps:15,}"


def describe_run(config: RunConfig, manifest: Manifest, store: WindowStore) -> list[str]:
    """How often the run goes through each source, and what packing leaves out."""
    dropped = manifest.counts["train"].num_tokens - store.num_tokens
    least = config.data.minimum_piece_tokens
    return [
        f"{config.schedule.total_steps:,} steps of {describe_sizes(config.batch)} rows:",
        *describe_sources(config, store),
        f"left out: {dropped:,} tokens, ends of long documents with fewer than {least} each",
    ]


def describe_sizes(batch: BatchSection) -> str:
    """The rows of a step, in words."""
    if not batch.rise_steps:
        return f"{batch.global_sequences:,}"
    return f"{batch.first_sequences:,} and, from step {batch.rise_steps:,} on, {batch.global_sequences:,}"


def draw_sample(batch: MaskedBatch, row_tokens: int, pieces: sentencepiece.SentencePieceProcessor) -> list[str]:
    """A batch of one row, token by token and document by document, for a terminal of 80 columns."""
    cells = np.full(row_tokens, " ")
    bounds = batch.cu_seqlens.tolist()
    lines = []
    for number, (start, end) in enumerate(itertools.pairwise(bounds), 1):
        cells[start:end] = "."
        cells[start], cells[end - 1] = "[", "]"
        text = pieces.decode(batch.original_ids[start + 1 : end - 1].tolist())
        shown = "".join(character if character.isprintable() else " " for character in text)[:TEXT_CELLS]
        lines.append(f"{number:4} tokens {start:5} to {end - 1:5}  {shown}")
    cells[batch.masked_rows.numpy()] = "#"
    bar = ["".join(cells[start : start + BAR_CELLS]) for start in range(0, row_tokens, BAR_CELLS)]
    return [
        *(f"{number * BAR_CELLS:6} |{line:{BAR_CELLS}}|" for number, line in enumerate(bar)),
        f"[ [CLS]   ] [SEP]   # masked ({batch.num_masked} tokens)   . other tokens",
        *lines,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(
        prog="python -m disentangled.trainer.plan", description=__doc__.splitlines()[2], allow_abbrev=False
    )
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--lengths", type=int, nargs="+", default=[], help="sequence lengths to compare with the run's")
    parser.add_argument("--sample", type=int, help="draw this sample of the run, from 0 on")
    parser.add_argument("--processes", type=int, default=1, help="shards packed at a time (%(default)s)")
    parser.add_argument("--memory", action="store_true", help="also what each rank will hold in memory")
    parser.add_argument("--probe-steps", type=int, default=0, help="also steps per day, from so many steps timed here")
    parser.add_argument("--engine", help="of --memory and --probe-steps: DeepSpeed JSON, or the name of a shipped one")
    parser.add_argument("--ranks", type=int, default=1, help="of --memory and --probe-steps: of the run (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    try:
        options = parser.parse_intermixed_args(arguments)
        config = load_run_config(options.recipe, options.overrides)
        check_ranks(options.memory or options.probe_steps > 0, options.engine, options.ranks)
        if options.memory:
            print(*plan_ranks(config, options.engine, options.ranks), "", sep="\n")
        if config.data.shards or not options.memory:
            run(config, options.lengths, options.sample, options.processes)
        if options.probe_steps > 0:
            lines = probe_here(options.recipe, options.engine, options.overrides, options.ranks, options.probe_steps)
            print("", *lines, sep="\n")
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    return 0


def check_ranks(is_asked: bool, engine: str | None, num_ranks: int) -> None:
    """ValueError where what is asked of ranks lacks their engine or number."""
    if is_asked and engine is None:
        raise ValueError("--memory and --probe-steps need the engine: add --engine FILE")
    if num_ranks < 1:
        raise ValueError(f"--ranks {num_ranks}: must be at least 1")


def plan_ranks(config: RunConfig, engine: str, num_ranks: int) -> list[str]:
    """Memory of a rank in lines. Activations are traced on this machine's device."""
    if not config.model.vocab_size and config.data.shards:
        dataset = open_dataset(config.data.shards, config.data.cache, config.data.cache_bytes)
        config = replace(config, model=replace(config.model, vocab_size=dataset.manifest.vocab_size))
    device = torch.device(get_accelerator().device_name())
    return describe_memory(plan_memory(config, load_ds_config(engine), num_ranks, device))


def run(config: RunConfig, lengths: Sequence[int], sample: int | None, processes: int) -> None:
    """Print the plan of a run; see main."""
    if not config.data.shards:
        raise ValueError("data.shards is not set: add data.shards=DIR to the command")
    if sample is not None and sample < 0:
        raise ValueError(f"--sample {sample}: must not be negative")
    if processes < 1:
        raise ValueError(f"--processes {processes}: must be at least 1")
    dataset = open_dataset(config.data.shards, config.data.cache, config.data.cache_bytes)
    print(TABLE_HEAD)
    for length in sorted({*lengths, config.data.sequence_length}):
        own = replace(config, data=replace(config.data, sequence_length=length))
        print(describe_rows(own, open_windows(own, dataset, "train", processes)))
    store = open_windows(config, dataset, "train", processes)
    print("", *describe_run(config, dataset.manifest, store), sep="\n")
    if sample is not None:
        one_row = replace(config, batch=replace(config.batch, micro_sequences=1))
        builder = make_builder(one_row, dataset, store, make_order(config, store), Stream.MASKING)
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path(dataset)))
        print("", *draw_sample(builder.build([sample]), config.data.sequence_length, pieces), sep="\n")


if __name__ == "__main__":
    sys.exit(main())
