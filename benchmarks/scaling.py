"""What a step costs against its sizes, fitted and checked: `python -m benchmarks.scaling`.

What: our whole RTD step is timed at sizes around a recipe, one thing changed at a time and two at the corners: tokens,
layers, width, vocabulary. The time is then written as a sum of four costs, each so much a unit, found by non-negative
least squares of the relative error:

    seconds = a * (operations of both encoders) + b * (operations of the vocabulary) + c * (parameters) + d

The model is worth what it says about sizes it has not seen, so each size is predicted from all others as well; the
largest and the median of these errors are printed. Then what it says of whole recipes on this device, one of it, with
the bytes that a step sends between ranks (trainer/network_plan.py), which are counted and not timed.
Tested by: tests/benchmarks/test_scaling.py. Not here: rivals (step.py); networks (docs/clusters.md).
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks.data.environment import processor_name, results_folder_name
from benchmarks.environment import describe_environment, device_name
from benchmarks.ops import device_folder
from benchmarks.step import TESTS
from benchmarks.step_problem import VOCABULARY, load_sizes, make_problem
from benchmarks.step_rounds import WARM_UP, time_step
from benchmarks.step_variants import OurStep, make_weights
from benchmarks.tests_first import own_tests_pass
from disentangled.model.flops import FORWARD_AND_BACKWARD, step_flops
from disentangled.trainer.distributed import leave_ranks
from disentangled.trainer.run_config import RunConfig, load_run_config

COSTS = ("encoders, operations", "vocabulary, operations", "parameters", "one step")
RESULTS = Path(__file__).parent / "results"
# Around the recipe: what is multiplied by how much.
CHANGES: tuple[dict[str, float], ...] = (
    {},
    {"rows": 2},
    {"rows": 4},
    {"layers": 2},
    {"layers": 3},
    {"vocabulary": 4},
    {"vocabulary": 8},
    {"width": 2},
    {"rows": 4, "layers": 2},
    {"vocabulary": 4, "width": 2},
    {"rows": 2, "vocabulary": 4},
)


@dataclass(frozen=True)
class Size:
    """A measured point: its name, its four counts and the seconds of a step (median CPU time, or wall on a GPU)."""

    name: str
    counts: tuple[float, float, float, float]
    seconds: float


def change_sizes(config: RunConfig, change: dict[str, float]) -> list[str]:
    """Overrides that multiply a recipe's sizes."""
    model, batch = config.model, config.batch

    def times(value: int, name: str) -> int:
        return round(value * change.get(name, 1))

    return [
        f"batch.micro_sequences={times(batch.micro_sequences, 'rows')}",
        f"model.num_hidden_layers={times(model.num_hidden_layers, 'layers')}",
        f"model.generator_num_hidden_layers={times(model.generator_num_hidden_layers, 'layers')}",
        f"model.vocab_size={times(model.vocab_size or VOCABULARY, 'vocabulary')}",
        f"model.hidden_size={times(model.hidden_size, 'width')}",
        f"model.num_attention_heads={times(model.num_attention_heads, 'width')}",
        f"model.intermediate_size={times(model.intermediate_size, 'width')}",
    ]


def count_costs(config: RunConfig, num_tokens: int, num_masked: int, num_parameters: int) -> tuple[float, ...]:
    """The four counts of a step in which every row is one document."""
    vocab_size, length = config.model.vocab_size, config.data.sequence_length
    generator, discriminator = config.model.generator(vocab_size), config.model.discriminator(vocab_size)
    of_vocabulary = FORWARD_AND_BACKWARD * 2 * num_masked * config.model.hidden_size * vocab_size
    both = step_flops(generator, discriminator, num_tokens, num_masked, length)
    return (both - of_vocabulary, of_vocabulary, num_parameters, 1.0)


def measure(recipe: str, overrides: Sequence[str], name: str, rounds: int, precision: str) -> Size:
    """Time our step at one size."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_sizes(recipe, overrides, 1)
    problem = make_problem(config, precision, "fixed", device)
    step = OurStep(problem, make_weights(problem), compiled=False)
    models = (step.engines.generator.module, step.engines.discriminator.module)
    num_parameters = sum(weight.numel() for model in models for weight in model.parameters())
    spent = [time_step(step, number, device) for number in range(WARM_UP + rounds)][WARM_UP:]
    clock = 0 if device.type == "cuda" else 1
    counts = count_costs(config, problem.counts.num_live, problem.counts.num_masked, num_parameters)
    del step, models
    gc.collect()
    return Size(name, counts, statistics.median(times[clock] for times in spent))  # type: ignore[arg-type]


def fit(sizes: Sequence[Size]) -> NDArray[np.float64]:
    """Seconds a unit of each cost, [4], none negative: least squares of the relative error."""
    seconds = np.array([size.seconds for size in sizes])
    counts = np.array([size.counts for size in sizes])
    scale = counts.max(axis=0)  # columns of like size: operations are 1e9 times a step
    found, _ = nnls(counts / scale / seconds[:, None], np.ones(len(sizes)))
    return np.asarray(found / scale, dtype=np.float64)


def predict(costs: NDArray[np.float64], counts: Sequence[float]) -> float:
    """Seconds of a step."""
    return float(np.dot(costs, counts))


def held_out_errors(sizes: Sequence[Size]) -> list[float]:
    """Of each size, predicted from the others: predicted / measured - 1."""
    errors = []
    for number, size in enumerate(sizes):
        costs = fit([other for place, other in enumerate(sizes) if place != number])
        errors.append(predict(costs, size.counts) / size.seconds - 1)
    return errors


def predict_recipe(name: str, costs: NDArray[np.float64]) -> dict[str, Any]:
    """A shipped recipe on one device: seconds of a whole step, and of the run in days."""
    config = load_run_config(name)
    vocab_size, width = config.model.vocab_size, config.model.hidden_size
    num_tokens = config.batch.global_sequences * config.data.sequence_length
    layers = config.model.num_hidden_layers + config.model.generator_num_hidden_layers
    parameters = 2 * vocab_size * width + layers * (4 * width**2 + 2 * width * config.model.intermediate_size)
    masked = round(num_tokens * config.masking.probability)
    seconds = predict(costs, count_costs(config, num_tokens, masked, parameters))
    days = seconds * config.schedule.total_steps / 86_400
    return {"recipe": name, "tokens": num_tokens, "step_seconds": seconds, "days_on_one_device": days}


def report_lines(sizes: Sequence[Size], costs: NDArray[np.float64], recipes: Sequence[str]) -> list[str]:
    """Markdown: sizes, costs, recipes."""
    errors = held_out_errors(sizes)
    lines = ["| size | seconds | predicted from the others |", "|---|---|---|"]
    lines += [
        f"| {size.name} | {size.seconds:.3f} | {size.seconds * (1 + error):.3f} ({error:+.0%}) |"
        for size, error in zip(sizes, errors, strict=True)
    ]
    absolute = [abs(error) for error in errors]
    lines += [
        "",
        f"Error on sizes not fitted: median {statistics.median(absolute):.0%}, largest {max(absolute):.0%}.",
        "",
    ]
    lines += ["| cost | a unit | share of the first size |", "|---|---|---|"]
    whole = predict(costs, sizes[0].counts)
    for name, cost, count in zip(COSTS, costs, sizes[0].counts, strict=True):
        unit = f"{1e-9 / cost:.1f} GFLOP/s" if "operations" in name and cost else f"{cost * 1e9:.3g} ns"
        lines.append(f"| {name} | {unit} | {cost * count / whole:.0%} |")
    lines += ["", "| recipe | tokens a step | a step on one device | the run on one |", "|---|---|---|---|"]
    for row in (predict_recipe(name, costs) for name in recipes):
        days = row["days_on_one_device"]
        lines.append(f"| {row['recipe']} | {row['tokens']:,} | {row['step_seconds']:,.1f} s | {days:,.0f} days |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="small" if torch.cuda.is_available() else "tiny", help="(%(default)s)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each size (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="on a CPU (%(default)s)")
    parser.add_argument("--recipes", nargs="+", default=["small", "base", "large"], help="to be told (%(default)s)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="recipe keys to change")
    options = parser.parse_intermixed_args(arguments)
    torch.set_num_threads(options.threads)
    if not own_tests_pass("-m", "not slow", *TESTS):
        return 1
    on_gpu = torch.cuda.is_available()
    folder = options.output or RESULTS / (device_folder(device_name()) if on_gpu else results_folder_name())
    folder.mkdir(parents=True, exist_ok=True)
    named = device_name() if on_gpu else f"{processor_name()}, {options.threads} threads"
    head = describe_environment(named, ("torch", "deepspeed"), ["python", "-m", "benchmarks.scaling", *arguments])
    config = load_run_config(options.recipe, options.overrides)
    sizes = []
    with (folder / "scaling.jsonl").open("a", encoding="utf-8") as file:
        for change in CHANGES:
            name = ", ".join(f"{key} x{factor:g}" for key, factor in change.items()) or f"{options.recipe} as it is"
            started = time.monotonic()
            overrides = [*options.overrides, *change_sizes(config, change)]
            sizes.append(measure(options.recipe, overrides, name, options.rounds, options.precision))
            row = head | {"size": name, "counts": dict(zip(COSTS, sizes[-1].counts, strict=True))}
            file.write(json.dumps(row | {"seconds": sizes[-1].seconds, "precision": options.precision}) + "\n")
            print(
                f"{name}: {sizes[-1].seconds:.3f} s a step ({time.monotonic() - started:.0f} s to measure)", flush=True
            )
    leave_ranks()
    costs = fit(sizes)
    print("", *report_lines(sizes, costs, options.recipes), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
