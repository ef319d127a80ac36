"""One whole RTD step, ours and what a user would write today, in one command: `python -m benchmarks.step`.

What: tests of the step first, and no number when one is red. Then, for each precision, all variants of
step_variants.py build from the same weights; each one's losses, logits and gradients on the same masked batch, and on
the same replaced batch, are held to the error rule against transformers in float64, and one that breaks it gets no
times. Then they take turns. The same for bare encoders, forward and backward. Rows go to
benchmarks/results/<device>/step.jsonl, beside a picture of where the time goes.
A micro-batch is the recipe's, cut by overrides: `model.vocab_size=32000 data.sequence_length=256`.
Tested by: tests/benchmarks/test_step.py, in a small size.
Not here: waiting for data. Batches are built before; how long ours takes for one, without workers, is a row's
`batch_seconds`.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data.environment import processor_name, results_folder_name
from benchmarks.environment import describe_environment, device_name
from benchmarks.ops import device_folder, names, numbers
from benchmarks.step_encoders import ENCODERS, build_encoder
from benchmarks.step_problem import (
    CASES,
    PRECISIONS,
    StepProblem,
    load_sizes,
    make_builder,
    make_checked_problem,
    make_problem,
)
from benchmarks.step_report import draw_picture, read_rows, table_lines
from benchmarks.step_rivals import RivalStep, Way
from benchmarks.step_rounds import Contestant, check_answer, time_contestants
from benchmarks.step_variants import VARIANTS, exact_answer, make_weights, rival_answer
from benchmarks.tests_first import own_tests_pass
from disentangled.model.flops import FORWARD_AND_BACKWARD, encoder_flops, step_flops
from disentangled.trainer.device_peaks import peak_of_device
from disentangled.trainer.distributed import leave_ranks

TESTS = (
    "tests/model/test_embedding_sharing.py", "tests/model/test_mlm_head.py", "tests/model/test_rtd_head.py",
    "tests/trainer/test_norms.py",
    "tests/trainer/test_update_guard.py",
)  # fmt: skip
PACKAGES = ("torch", "triton", "transformers", "deepspeed", "disentangled-flash")
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = make_parser().parse_intermixed_args(arguments)
    if options.picture_only is not None:
        report(read_rows(options.picture_only), options.picture_only.with_suffix(".png"))
        return 0
    deadline = time.monotonic() + 60 * options.minutes
    if not own_tests_pass("-m", "not slow", *TESTS):
        return 1
    on_gpu = torch.cuda.is_available()
    folder = options.output or RESULTS / (device_folder(device_name()) if on_gpu else results_folder_name())
    folder.mkdir(parents=True, exist_ok=True)
    named = device_name() if on_gpu else f"{processor_name()}, {max(options.threads)} threads"
    context = describe_environment(named, PACKAGES, ["python", "-m", "benchmarks.step", *arguments])
    rows: list[Row] = []
    for row in run_all(options, torch.device("cuda" if on_gpu else "cpu"), deadline):
        rows.append(context | row)
        with (folder / "step.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1], allow_nan=False) + "\n")
    leave_ranks()
    report(rows, folder / "step.png")
    return int(any("error" in row for row in rows if row["variant"].startswith("ours")))


def make_parser() -> argparse.ArgumentParser:
    """Defaults are the goals': tiny in fp32 and bf16 on a CPU, base in bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    variants = tuple(name for name, variant in VARIANTS.items() if on_gpu or not variant.needs_gpu)
    parser = argparse.ArgumentParser(prog="benchmarks.step", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base" if on_gpu else "tiny")
    parser.add_argument("--precisions", type=names(PRECISIONS), default=("bf16",) if on_gpu else ("fp32", "bf16"))
    parser.add_argument("--variants", type=names(VARIANTS), default=variants, metavar="NAME,...")
    parser.add_argument("--encoders", type=names([*ENCODERS, "none"]), default=tuple(ENCODERS), metavar="NAME,...")
    parser.add_argument("--micro-batches", type=int, default=1, help="of a step")
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 5)
    parser.add_argument(
        "--threads", type=numbers, default=tuple(sorted({1, torch.get_num_threads()})), metavar="N,...",
        help="of torch: each is tried, and a variant's best counts",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=60.0, help="then no new round begins")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument("--picture-only", type=Path, metavar="FILE", help="picture and table of rows made before")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser


def run_all(options: argparse.Namespace, device: torch.device, deadline: float) -> Iterator[Row]:
    """Rows of every precision: the steps', then the encoders'."""
    config = load_sizes(options.recipe, options.overrides, options.micro_batches)
    for precision in options.precisions:
        problems = {case: make_problem(config, precision, case, device) for case in CASES}
        head = describe_sizes(problems["fixed"]) | {"recipe": options.recipe}
        peak = peak_of_device(device, precision)
        checked = make_checked_problem(config, precision, device)
        contestants = step_contestants(problems, checked, options.variants)
        for row in time_contestants(contestants, options.rounds, options.threads, device, deadline):
            problem = problems[row["case"]]
            yield head | {"kind": "step"} | row | rates(row, problem.counts.num_live, count_flops(problem), peak)
        gc.collect()
        chosen = [name for name in options.encoders if name != "none"]
        contestants = encoder_contestants(problems["fixed"], checked, chosen)
        for row in time_contestants(contestants, options.rounds, options.threads, device, deadline):
            batch, sizes = problems["fixed"].batches[0], config.model.discriminator(config.model.vocab_size)
            flops = FORWARD_AND_BACKWARD * encoder_flops(sizes, batch.num_live, config.data.sequence_length)
            is_deberta = row["variant"] in ("ours", "deberta")
            found = rates(row, batch.num_live, flops if is_deberta else None, peak)
            yield head | {"kind": "encoder"} | row | found
        gc.collect()


def step_contestants(problems: dict[str, StepProblem], checked: StepProblem, chosen: Sequence[str]) -> list[Contestant]:
    """The chosen variants on full rows, the first one of ours first, and that again on mixed lengths."""
    weights = make_weights(checked)
    exact, eager = exact_answer(checked, weights), rival_answer(RivalStep(checked, weights, Way()), checked)
    chosen = sorted(chosen, key=lambda name: not VARIANTS[name].is_ours)
    jobs = [(name, "fixed") for name in chosen]
    jobs += [(name, "mixed") for name in chosen[:1] if VARIANTS[name].is_ours]
    contestants = []
    for name, case in jobs:
        variant = VARIANTS[name]

        def check(step: Any, case: str = case, answer: Any = variant.answer) -> None:
            if case == "fixed":  # the same code runs the other case, whose rows transformers' cannot have
                check_answer(answer(step, checked), eager, exact)

        build = partial(variant.build, problems[case], weights)
        is_seen = checked.device.type == "cuda" or not name.endswith("compiled")
        contestants.append(Contestant(name, case, build, check, True, is_seen))
    return contestants


def encoder_contestants(problem: StepProblem, checked: StepProblem, chosen: Sequence[str]) -> list[Contestant]:
    """The chosen encoders; ours and transformers' DeBERTaV3 have the same weights."""
    last = problem.config.model.num_hidden_layers - 1
    exact = build_encoder("deberta", checked, torch.float64).answer(last)
    eager = build_encoder("deberta", checked).answer(last)

    def check(name: str, _: Any) -> None:
        if name in ("ours", "deberta"):
            check_answer(build_encoder(name, checked).answer(last), eager, exact)

    return [
        Contestant(name, "fixed", partial(build_encoder, name, problem), partial(check, name), False, True)
        for name in chosen
    ]


def describe_sizes(problem: StepProblem) -> Row:
    """What was run, and how long ours takes to build one micro-batch."""
    config = problem.config
    builder, rows = make_builder(config, "fixed"), np.arange(config.batch.micro_sequences)
    spent = []
    for _ in range(5):
        started = time.process_time()
        builder.build(rows)
        spent.append(time.process_time() - started)
    return {
        "precision": problem.precision,
        "width": config.model.hidden_size,
        "layers": [config.model.generator_num_hidden_layers, config.model.num_hidden_layers],
        "heads": config.model.num_attention_heads,
        "vocabulary": problem.vocab_size,
        "dropout": config.model.hidden_dropout_prob,
        "rows": config.batch.micro_sequences,
        "tokens": config.data.sequence_length,
        "micro_batches": len(problem.batches),
        "masked": problem.counts.num_masked,
        "batch_seconds": statistics.median(spent),
    }


def count_flops(problem: StepProblem) -> int:
    """Of all micro-batches; mixed documents are counted at their mean squared length."""
    model, total = problem.config.model, 0
    for batch in problem.batches:
        sizes = model.generator(problem.vocab_size), model.discriminator(problem.vocab_size)
        length = round(batch.num_pairs / batch.num_live)
        total += step_flops(*sizes, batch.num_live, batch.num_masked, length)
    return total


def rates(row: Row, num_live: int, flops: int | None, peak: float | None) -> Row:
    """Live tokens a second, TFLOP/s and MFU, by the wall clock, and tokens by CPU time."""
    if "error" in row:
        return {}
    seconds = row["wall_seconds"]
    return {
        "live_tokens": num_live,
        "tokens_per_second": num_live / seconds,
        "tokens_per_cpu_second": num_live / row["cpu_seconds"],
        "achieved_tflops": None if flops is None else flops / seconds / 1e12,
        "mfu": None if flops is None or peak is None else flops / seconds / peak,
    }


def report(rows: Sequence[Row], picture: Path) -> None:
    """Print the tables and draw the picture."""
    for line in table_lines(rows):
        print(line)
    print(f"picture: {picture}" if draw_picture(rows, picture) else "no picture: no step of ours has parts")


if __name__ == "__main__":
    sys.exit(main())
