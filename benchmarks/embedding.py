"""GDES's embeddings, plain and compiled, and their share of a step: `python -m benchmarks.embedding`.

What: tests of the way of sharing first, and no number when one is red. Then rows of E_G and of E_Delta looked up,
summed in float32, LayerNorm, padding mask, dropout, and the backward pass into E_Delta, as model/embeddings.py has
them: as they are and under torch.compile, in turn with whole steps of ours of the same size. The compiled code's
result and gradient are held to the error rule first. One JSON line goes to benchmarks/results/<device>/embedding.jsonl.
It also counts what each way must move through a GPU's memory (`moved_bytes`), from the code, whatever the device.
Tested by: tests/benchmarks/test_embedding.py. What follows from it: docs/decisions/0011-no-embedding-kernel.md.
"""

# T tokens  D hidden width  V vocabulary

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.data.environment import processor_name, results_folder_name
from benchmarks.environment import describe_environment, device_name
from benchmarks.ops import device_folder
from benchmarks.step import describe_sizes
from benchmarks.step_problem import SEED, StepProblem, load_sizes, make_problem
from benchmarks.step_rounds import WARM_UP, time_step
from benchmarks.step_variants import OurStep, make_weights
from benchmarks.tests_first import own_tests_pass
from disentangled.kernels import keep_mask_op  # noqa: F401, defines dropout's operator for compiled code
from disentangled.model.embeddings import Embeddings
from disentangled.model.noise import discriminator_noise
from disentangled.trainer.distributed import leave_ranks
from tests.numerics import assert_no_worse_than_eager

TEST = "tests/model/test_embedding_sharing.py"
RESULTS = Path(__file__).parent / "results"
FLOAT32_BYTES = 4
# Philox in torch: in each of ten rounds two products (read 8 bytes, write 8) and eight steps in place, for 8 values
PHILOX_BYTES = 10 * (2 * 16 + 8 * 16) / 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="benchmarks.embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", default="base" if on_gpu else "tiny")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if on_gpu else "fp32")
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 7)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="default: benchmarks/results/<device>")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    options = parser.parse_intermixed_args(arguments)
    if not own_tests_pass(TEST):
        return 1
    folder = options.output or RESULTS / (device_folder(device_name()) if on_gpu else results_folder_name())
    folder.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if on_gpu else "cpu")
    named = device_name() if on_gpu else f"{processor_name()}, {torch.get_num_threads()} threads"
    context = describe_environment(named, ("torch", "triton"), ["python", "-m", "benchmarks.embedding", *arguments])
    problem = make_problem(load_sizes(options.recipe, options.overrides, 1), options.precision, "fixed", device)
    row = context | describe_sizes(problem) | {"recipe": options.recipe} | compare(problem, options.rounds)
    leave_ranks()
    with (folder / "embedding.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(describe(row))
    return 0


class EmbeddingRun:
    """Forward and backward of the discriminator's embeddings on the problem's first micro-batch."""

    def __init__(self, problem: StepProblem, compiled: bool, dtype: torch.dtype = torch.float32) -> None:
        config = problem.config.model.discriminator(problem.vocab_size)
        random = torch.Generator().manual_seed(SEED)
        table = torch.randn(config.vocab_size, config.hidden_size, generator=random)
        self.embeddings = Embeddings(config, "delta")
        with torch.no_grad():
            self.embeddings.word_embeddings_delta.weight.copy_(0.1 * torch.randn(table.shape, generator=random))
        self.grad_output = torch.randn(problem.batches[0].num_tokens, config.hidden_size, generator=random)
        self.grad_output = self.grad_output.to(problem.device, dtype)
        self.embeddings.to(problem.device, dtype)
        shared, ids, layout = table.to(problem.device, dtype), problem.replaced[0], problem.batches[0].layout()
        noise = discriminator_noise(problem.config.run.seed, 0)

        def forward() -> Tensor:
            states: Tensor = self.embeddings(ids, layout, noise, F.embedding(ids, shared))
            return states

        self._forward: Callable[[], Tensor] = torch.compile(forward, dynamic=False) if compiled else forward

    def run(self, step: int) -> None:
        """Both passes; `step` is not needed."""
        self.embeddings.zero_grad(set_to_none=True)
        self._forward().backward(self.grad_output)

    def answer(self) -> dict[str, Tensor]:
        """Result, and every gradient."""
        self.embeddings.zero_grad(set_to_none=True)
        states = self._forward()
        states.backward(self.grad_output)
        return {"states": states.detach()} | {n: p.grad.clone() for n, p in self.embeddings.named_parameters()}


def compare(problem: StepProblem, rounds: int) -> dict[str, Any]:
    """Median milliseconds of each, in turn; CPU time on a CPU."""
    runs = {"plain": EmbeddingRun(problem, False), "compiled": EmbeddingRun(problem, True)}
    exact, eager = EmbeddingRun(problem, False, torch.float64).answer(), runs["plain"].answer()
    for name, value in runs["compiled"].answer().items():
        assert_no_worse_than_eager(value, eager[name], exact[name], name)
    contestants = runs | {"step": OurStep(problem, make_weights(problem), compiled=False)}
    clock = 0 if problem.device.type == "cuda" else 1
    times: dict[str, list[float]] = {name: [] for name in contestants}
    started = time.perf_counter()
    for number in range(WARM_UP + rounds):
        for name, contestant in contestants.items():
            times[name].append(time_step(contestant, number, problem.device)[clock])
    row: dict[str, Any] = {
        f"{name}_milliseconds": 1e3 * statistics.median(values[WARM_UP:]) for name, values in times.items()
    }
    row |= {"rounds": rounds, "took_seconds": time.perf_counter() - started}
    row |= {f"share_{name}": row[f"{name}_milliseconds"] / row["step_milliseconds"] for name in runs}
    sizes = problem.batches[0].num_tokens, problem.config.model.hidden_size, problem.vocab_size
    return row | {
        f"{way}_moved_bytes": moved_bytes(way, *sizes, FLOAT32_BYTES, problem.config.model.hidden_dropout_prob)
        for way in ("plain", "fused")
    }


def moved_bytes(way: str, num_tokens: int, width: int, num_ids: int, weight_bytes: int, dropout: float) -> int:
    """Bytes read and written by forward and backward, the gradient [V, D] included, of which each way writes one.

    plain, in passes over [T, D]: two look-ups (read, write), the sum (read two, write), LayerNorm (read, write), the
    mask (read, write), dropout's product and scale (4 and the decisions); backward the same from dropout to the mask,
    LayerNorm (read two, write), the rows into the gradient (read, write). In half precision the passes between the sum
    and LayerNorm are float32, and converting adds a read and a write of each for both tables' rows, for LayerNorm's
    result and, backward, for the rows and the incoming gradient. fused: what any kernel must do: forward reads both
    tables' rows and writes the result; backward reads them again, reads the gradient and writes its rows; decisions are
    drawn again.
    """
    values = num_tokens * width
    gradient = num_ids * width * weight_bytes
    if way == "fused":
        return values * 7 * weight_bytes + gradient
    in_weights = 4 + 2 + 2  # look-ups, the mask forward, the mask backward
    in_float32 = 3 + 2 + 3  # the sum, LayerNorm forward, LayerNorm backward
    passes = in_weights * weight_bytes + in_float32 * FLOAT32_BYTES + 2 * weight_bytes
    if weight_bytes < FLOAT32_BYTES:
        passes += 5 * (weight_bytes + FLOAT32_BYTES)
    if dropout:
        passes += 2 * 4 * weight_bytes + 2
    moved = values * passes + gradient
    return int(moved + (values * PHILOX_BYTES if dropout else 0))


def describe(row: dict[str, Any]) -> str:
    """A row in two lines."""
    return (
        f"{row['recipe']}, width {row['width']}, {row['vocabulary']:,} ids, {row['rows']} x {row['tokens']} tokens, "
        f"dropout {row['dropout']}: plain {row['plain_milliseconds']:.2f} ms, compiled "
        f"{row['compiled_milliseconds']:.2f} ms, a step {row['step_milliseconds']:.1f} ms: {row['share_plain']:.1%} "
        f"and {row['share_compiled']:.1%} of it\nmoved through memory: plain {row['plain_moved_bytes'] / 1e6:.0f} MB, "
        f"a kernel at least {row['fused_moved_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
