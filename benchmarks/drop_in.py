"""Whole transformers DebertaV2 models, as they are and accelerated, in one command: `python -m benchmarks.drop_in`.

What: the tests of the drop-in first, and no number when one is red. Then each variant's hidden states and gradients
are held to the error rule against transformers' code in float64, on the first batch that is timed; one that breaks it
gets an error for a row and no times. Then all variants take turns, forward alone (without gradients) and forward with
backward; a figure is a median over the rounds, and a ratio the median of the rounds' ratios.

Lengths are those of real texts; the first row of a batch fills it, as the longest of any batch does. Weights are
random. Not here: what is run (drop_in_variants.py), lengths (drop_in_batches.py).
Tested by: tests/benchmarks/test_drop_in.py, in a small size.
"""

import argparse
import copy
import functools
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from benchmarks.data.environment import processor_name, results_folder_name
from benchmarks.drop_in_batches import CASES, SEED, UNITS, Batch, make_batches, text_lengths
from benchmarks.drop_in_variants import VARIANTS
from benchmarks.environment import describe_environment, device_name
from benchmarks.ops import DTYPES, LONGEST_ERROR, RESULTS, device_folder, names
from benchmarks.tests_first import own_tests_pass
from tests.numerics import assert_no_worse_than_eager

TESTS = ("-m", "not slow", "tests/finetune/test_accelerate.py")
PACKAGES = ("torch", "triton", "transformers", "disentangled-flash", "flashdeberta")
SIZES = {  # hidden width, layers, heads, vocabulary; feed-forward is four times the width
    "tiny": (64, 2, 2, 100),
    "small": (768, 6, 12, 128_100),
    "base": (768, 12, 12, 128_100),
    "large": (1024, 24, 16, 128_100),
}
PASSES = ("forward", "forward_backward")
GOALS = {"cpu": {"forward": 2.0, "forward_backward": 1.6}, "gpu": {"forward": 3.0, "forward_backward": 3.0}}

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_args(arguments)
    if not own_tests_pass(*TESTS):
        return 1
    on_gpu = torch.cuda.is_available()
    device = "cuda" if on_gpu else "cpu"
    folder = options.output or RESULTS / (device_folder(device_name()) if on_gpu else results_folder_name())
    folder.mkdir(parents=True, exist_ok=True)
    named = device_name() if on_gpu else f"{processor_name()}, {torch.get_num_threads()} threads"
    context = describe_environment(named, PACKAGES, ["python", "-m", "benchmarks.drop_in", *arguments])
    with tempfile.TemporaryDirectory() as scratch:
        lengths = text_lengths(options.text, options.unit, Path(scratch))
    context |= {name: getattr(options, name) for name in ("size", "dtype", "rows", "tokens", "dropout", "unit")}
    context |= {"text": "python's english" if options.text is None else options.text.name}
    model = make_model(options.size, options.tokens, options.dropout, DTYPES[options.dtype], device)
    rows: list[Row] = []
    for case in options.cases:
        vocabulary = model.config.vocab_size
        batches = make_batches(lengths, case, options.batches, options.rows, options.tokens, vocabulary, device)
        for row in time_case(model, batches, options.variants, options.rounds):
            live = sum(map(sum, (batch.lengths for batch in batches)))
            share = live / (len(batches) * options.rows * options.tokens)
            rows.append(context | {"case": case, "live_share": share, "rounds": options.rounds} | row)
            with (folder / "drop_in.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1], allow_nan=False) + "\n")
    for line in table_lines(rows, "gpu" if on_gpu else "cpu"):
        print(line)
    return int(any("error" in row for row in rows if row["variant"].startswith("ours")))


def make_parser() -> argparse.ArgumentParser:
    """Defaults are the goals': fp32 on a CPU, bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    variants = tuple(name for name, variant in VARIANTS.items() if on_gpu or not variant.needs_gpu)
    parser = argparse.ArgumentParser(prog="benchmarks.drop_in", description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--tokens", type=int, default=512, help="of the longest row")
    parser.add_argument("--rows", type=int, default=32 if on_gpu else 4, help="of a batch")
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if on_gpu else "fp32")
    parser.add_argument("--dropout", type=float, default=0.0, help="of the timed forward and backward")
    parser.add_argument("--cases", type=names(CASES), default=CASES, metavar=",".join(CASES))
    parser.add_argument(
        "--variants", type=names(VARIANTS), default=variants, metavar="NAME,...", help=", ".join(VARIANTS)
    )
    parser.add_argument("--text", type=Path, metavar="FILE", help="whose lengths are taken; default: Python's English")
    parser.add_argument("--unit", choices=UNITS, default="block", help="what a text is: lines, or between blank lines")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    return parser


def make_model(size: str, tokens: int, dropout: float, dtype: torch.dtype, device: str) -> DebertaV2Model:
    """DeBERTaV3's architecture with random weights."""
    width, layers, heads, vocabulary = SIZES[size]
    torch.manual_seed(SEED)
    config = DebertaV2Config(
        vocab_size=vocabulary, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, max_position_embeddings=max(tokens, 512), relative_attention=True,
        position_buckets=256, pos_att_type=["c2p", "p2c"], share_att_key=True, norm_rel_ebd="layer_norm",
        position_biased_input=False, type_vocab_size=0, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    return DebertaV2Model(config).to(device, dtype)


def time_case(model: nn.Module, batches: Sequence[Batch], chosen: Sequence[str], rounds: int) -> list[Row]:
    """A row for each variant: its errors checked, its times, and its speed-up over transformers'."""
    exact = eager = None
    failed: dict[str, str] = {}
    for name in ("transformers", *(name for name in chosen if name != "transformers")):
        try:
            with VARIANTS[name].lend(model) as lent:
                found = answer(lent, batches[0])
            if eager is None:
                eager, exact = found, answer(copy.deepcopy(model).double(), batches[0])
            for part, value in found.items():
                assert_no_worse_than_eager(value, eager[part], exact[part], part)
        # A rival may raise anything, on any machine: that is a result about it, and the others are still wanted.
        except Exception as error:
            failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:LONGEST_ERROR]
            print(f"{name}: {failed[name]}", flush=True)
    del exact, eager
    timed = [name for name in chosen if name not in failed]
    seconds: dict[str, list[tuple[float, float]]] = {f"{name} {part}": [] for name in timed for part in PASSES}
    for number, part, name in itertools.product(range(rounds + 1), PASSES, timed):
        with VARIANTS[name].lend(model) as lent:
            if VARIANTS[name].builds_modules:
                time_pass(lent, batches, part)
            spent = time_pass(lent, batches, part)
        if number > 0:  # the first warms up
            seconds[f"{name} {part}"].append(spent)
        print(f"round {number} {part} {name}: wall {spent[0]:.2f} s, CPU {spent[1]:.2f} s", flush=True)
    return [
        {"variant": name} | ({"error": failed[name]} if name in failed else figures(seconds, name)) for name in chosen
    ]


def figures(seconds: dict[str, list[tuple[float, float]]], name: str) -> Row:
    """Medians of a variant over the rounds, and its speed-up over transformers', by wall clock and by CPU time."""
    row: Row = {}
    for part in PASSES:
        for index, clock in enumerate(("wall", "cpu")):
            own = [spent[index] for spent in seconds[f"{name} {part}"]]
            theirs = [spent[index] for spent in seconds.get(f"transformers {part}", [])]
            row[f"{part}_{clock}_median_seconds"] = statistics.median(own)
            if theirs:
                ratios = [slow / fast for slow, fast in zip(theirs, own, strict=True)]
                row[f"{part}_{clock}_speed_up"] = statistics.median(ratios)
                row[f"{part}_{clock}_speed_up_range"] = [min(ratios), max(ratios)]
    return row


def answer(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Live hidden states, and gradients from the first layer to the last of a weighted sum over them; no dropout."""
    model.eval()
    model.zero_grad(set_to_none=True)
    live = batch.attention_mask.bool()
    states = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state[live]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(SEED)).to(states)
    (states * weights).sum().backward()
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    last = model.config.num_hidden_layers - 1
    wanted = ["encoder.rel_embeddings.weight"]
    wanted += [
        f"encoder.layer.{layer}.attention.self.{part}_proj.weight" for layer in (0, last) for part in ("query", "value")
    ]
    found = {"hidden states": states.detach()} | {name: parameters[name].grad.detach() for name in wanted}
    model.zero_grad(set_to_none=True)
    return found


def time_pass(model: nn.Module, batches: Sequence[Batch], part: str) -> tuple[float, float]:
    """Wall clock and CPU time of all batches."""
    on_gpu = batches[0].input_ids.is_cuda
    synchronize = torch.cuda.synchronize if on_gpu else functools.partial(int)
    model.train(part == "forward_backward")
    model.zero_grad(set_to_none=True)
    synchronize()
    started, cpu_started = time.perf_counter(), time.process_time()
    for batch in batches:
        with torch.set_grad_enabled(part == "forward_backward"):
            states = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        if part == "forward_backward":
            states[:, 0].sum().backward()
    synchronize()
    spent = time.perf_counter() - started, time.process_time() - cpu_started
    model.zero_grad(set_to_none=True)
    return spent


def table_lines(rows: Sequence[Row], device: str) -> list[str]:
    """The speed-ups over transformers', a line for each case and variant, and whether ours reaches the goals."""
    lines = [
        f"{'case':<8}{'live':>6}  {'variant':<22}{'forward':>20}{'forward + backward':>22}  of transformers' speed"
    ]
    for row in rows:
        head = f"{row['case']:<8}{row['live_share']:>6.0%}  {VARIANTS[row['variant']].label:<22}"
        if "error" in row:
            lines.append(f"{head}{row['error']}")
            continue
        shown, missed = "", []
        for part, width in zip(PASSES, (20, 22), strict=True):
            speed_up = row.get(f"{part}_wall_speed_up")
            text = "-" if speed_up is None else f"{speed_up:.2f}x (CPU {row[f'{part}_cpu_speed_up']:.2f}x)"
            shown += f"{text:>{width}}"
            if speed_up is not None and speed_up < GOALS[device][part]:
                missed.append(f"{part} {GOALS[device][part]}x")
        verdict = ""
        if row["variant"] == "ours" and row["case"] == "mixed":
            verdict = f"  missed: {', '.join(missed)}" if missed else "  goals held"
        lines.append(head + shown + verdict)
    return lines


if __name__ == "__main__":
    sys.exit(main())
