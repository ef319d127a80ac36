"""A training process that something goes wrong in: deepspeed --module tests.integration.faulty_train FAULT ARGUMENTS.

What: `trainer/train.py` with one fault put in, named by FAULT=value; ARGUMENTS are the trainer's.
- nan=A-B, inf=A-B: the generator's loss of a micro-batch that holds a sample A .. B - 1 is not finite;
- spike=A-B: its gradient is 1e6 times as large;
- hang=R@S: rank R waits for ever in step S;
- clock=1: the time of day jumps by a year, forth and back, at each look;
- memory=R@S: rank R runs out of memory in step S;
- slow_disk=1: each file of a checkpoint takes a second;
- slow_step=S: each step takes S seconds more.
Used by: tests/integration/test_faults.py.
"""

import itertools
import sys
import threading
import time
from typing import Any

import torch

from disentangled.trainer import checkpoint_writer, train
from disentangled.trainer.rtd_step import RtdStep

YEAR_SECONDS = 365 * 24 * 3600.0


def harm_samples(first: int, stop: int, factor: float) -> None:
    """Multiply the generator's loss by `factor` where a micro-batch holds one of these samples."""
    generate = RtdStep._generate

    def generate_harmed(self: RtdStep, batch: Any, layout: Any, *others: Any) -> Any:
        output = generate(self, batch, layout, *others)
        is_harmed = bool(((batch.document_sample >= first) & (batch.document_sample < stop)).any())
        if is_harmed:
            object.__setattr__(output, "mlm_loss_sum", output.mlm_loss_sum * factor)
        return output

    RtdStep._generate = generate_harmed  # type: ignore[method-assign]


def harm_rank(rank: int, at_step: int, harm: Any) -> None:
    """Call `harm` in one rank's step."""
    run = RtdStep.run

    def run_harmed(self: RtdStep, batches: Any, counts: Any, step: int, sums: Any) -> None:
        if step == at_step and torch.distributed.get_rank() == rank:
            harm()
        run(self, batches, counts, step, sums)

    RtdStep.run = run_harmed  # type: ignore[method-assign]


def slow_down_steps(seconds: float) -> None:
    """Let each step take so much longer."""
    run = RtdStep.run

    def run_slowly(self: RtdStep, *arguments: Any) -> None:
        time.sleep(seconds)
        run(self, *arguments)

    RtdStep.run = run_slowly  # type: ignore[method-assign]


def raise_out_of_memory() -> None:
    """What a full GPU says."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def slow_down_disk() -> None:
    """Let each file of a checkpoint take a second more."""
    settle = checkpoint_writer.settle

    def settle_slowly(*arguments: Any) -> Any:
        time.sleep(1)
        return settle(*arguments)

    checkpoint_writer.settle = settle_slowly


def put_in(fault: str) -> None:
    """Put the fault in."""
    name, _, value = fault.partition("=")
    if name in ("nan", "inf", "spike"):
        first, stop = (int(number) for number in value.split("-"))
        harm_samples(first, stop, {"nan": float("nan"), "inf": float("inf"), "spike": 1e6}[name])
    elif name in ("hang", "memory"):
        rank, step = (int(number) for number in value.split("@"))
        harm_rank(rank, step, raise_out_of_memory if name == "memory" else threading.Event().wait)
    elif name == "clock":
        now, jumps = time.time, itertools.cycle((0.0, YEAR_SECONDS, -YEAR_SECONDS))
        time.time = lambda: now() + next(jumps)
    elif name == "slow_disk":
        slow_down_disk()
    elif name == "slow_step":
        slow_down_steps(float(value))
    else:
        raise ValueError(f"no such fault: {fault}")


if __name__ == "__main__":
    [chosen] = [word for word in sys.argv[1:] if word.partition("=")[0].isidentifier() and "=" in word][:1]
    sys.argv.remove(chosen)
    put_in(chosen)
    sys.exit(train.main())
