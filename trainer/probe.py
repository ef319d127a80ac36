"""How long a step takes here: `deepspeed --module disentangled.trainer.probe --recipe R --engine E [key=value ...]`.

What: real steps of the run on its shards, timed, none of them saved: the ranks that were launched do the work of one
rank each of a run on `--ranks N`. Where a step has many micro-batches, steps of two and of four are timed and a line is
drawn through both. Evaluations and checkpoints are not in it, nor is the network to ranks that were not launched.
run.dir must be free; nothing but run.json, the tokenizer and a lock is left there.
Used by: trainer/probe_here.py, users who have the whole cluster at hand. Tested by tests/trainer/test_probe.py.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

from deepspeed.accelerator import get_accelerator

from disentangled.trainer.assemble import build_training
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.distributed import leave_ranks, share_threads
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.foreign_launchers import rank_variables
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import RunConfig, accumulation_steps, load_run_config
from disentangled.trainer.training import Training

FEW, SOME = 2, 4  # micro-batches of the steps through which a line is drawn
WARM_UP = 2  # steps of each size that are not counted


def cut_batch(config: RunConfig, num_ranks: int, num_here: int) -> tuple[RunConfig, int]:
    """The config of a run on `num_here` ranks whose steps have at most SOME micro-batches, and how many it should have.

    Raises:
        ValueError: the batch does not divide by `num_ranks`.
    """
    accumulation = accumulation_steps(config.batch, num_ranks)
    sequences = config.batch.micro_sequences * num_here * min(accumulation, SOME)
    batch = replace(config.batch, global_sequences=sequences, first_sequences=0, rise_steps=0)
    return replace(config, batch=batch), accumulation


def time_steps(training: Training, accumulation: int, num_steps: int) -> dict[int, list[float]]:
    """Seconds of `num_steps` steps for each number of micro-batches in them, after a warm-up."""
    ranks, total_steps = training.ranks, training.config.schedule.total_steps
    rtd_step = RtdStep(training.engines, training.config, training.sampling, ranks.world_size)
    sizes = [accumulation] if accumulation <= SOME else [FEW, SOME]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    steps = training.loader.steps(0, len(sizes) * (WARM_UP + num_steps))
    for number in range(len(sizes) * (WARM_UP + num_steps)):
        size = sizes[number % len(sizes)]
        ranks.wait_for_all()
        started = time.perf_counter()
        batches = [batch.to(ranks.device) for batch in next(steps)[:size]]
        counts = ranks.sum_on_host([sum(x.num_masked for x in batches), sum(x.num_live for x in batches)])
        # the last step of the run: both models train, at the schedule's lowest rate
        rtd_step.run(batches, GlobalCounts(*counts), total_steps - 1, training.sums)
        get_accelerator().synchronize()
        seconds[size].append(time.perf_counter() - started)
    steps.close()
    return {size: values[WARM_UP:] for size, values in seconds.items()}


def seconds_of_step(seconds: dict[int, list[float]], accumulation: int) -> float:
    """Median of the steps of `accumulation` micro-batches, or what the line through the medians of others says."""
    medians = {size: statistics.median(values) for size, values in seconds.items()}
    if accumulation in medians:
        return medians[accumulation]
    (few, at_few), (some, at_some) = sorted(medians.items())
    each = max(0.0, at_some - at_few) / (some - few)
    return max(at_some + each * (accumulation - some), at_some)


def describe_pace(step_seconds: float, total_steps: int) -> str:
    """Seconds of a step, steps per day and days of the run, in one line."""
    per_day = 24 * 3600 / step_seconds
    days = total_steps / per_day
    return f"{step_seconds:.3g} s a step: {per_day:,.0f} steps per day, {days:,.3g} days for {total_steps:,} steps"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; returns its exit code."""
    os.environ.update(rank_variables(os.environ))
    parser = OneLineParser(prog="disentangled.trainer.probe", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--engine", required=True, help="DeepSpeed JSON, or the name of a shipped one")
    parser.add_argument("--ranks", type=int, default=0, help="of the run; those that are launched if not given")
    parser.add_argument("--steps", type=int, default=5, help="timed (%(default)s)")
    parser.add_argument("--output", default="", help="JSON file for the seconds of each step")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    try:
        options = parser.parse_intermixed_args(arguments)
        if options.steps < 1:
            raise ValueError(f"--steps {options.steps}: must be at least 1")
        num_here = int(os.environ.get("WORLD_SIZE", "1"))
        whole = load_run_config(options.recipe, options.overrides)
        config, accumulation = cut_batch(whole, options.ranks or num_here, num_here)
        training = build_training(config, load_ds_config(options.engine))
        if training.step:
            raise ValueError(f"run.dir {config.run.dir} holds a run: give the probe a folder of its own")
        seconds = time_steps(training, accumulation, options.steps)
    except (ValueError, OSError) as error:
        print_error(error)
        leave_ranks()
        return EXIT_USER_ERROR
    if training.ranks.is_first:
        step_seconds = seconds_of_step(seconds, accumulation)
        say(describe_pace(step_seconds, config.schedule.total_steps))
        if options.output:
            with open(options.output, "w", encoding="utf-8") as file:
                json.dump({"step_seconds": step_seconds, "micro_batches": accumulation, "timed": seconds}, file)
    leave_ranks()
    return 0


if __name__ == "__main__":
    share_threads()
    sys.exit(main())
