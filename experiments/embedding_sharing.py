"""Ways of sharing embeddings beside one another: `python -m experiments.embedding_sharing --shards DIR --output DIR`.

What: section 3 of arXiv 2111.09543 tried again. On the same text, samples and seeds a pair is trained with ELECTRA's
embedding sharing (es), none (nes) and gradient-disentangled sharing (gdes), and an encoder as deep by plain masked
language modelling (mlm). Then, per way and over seeds: the generator's held-out MLM loss against the step (the paper's
figure 2), the average cosine of E_G, E_D and E_Delta (table 1), the cosine between the two gradients that meet in E,
and with `--tasks DIR` fine-tuned scores (table 2). `sharing.md`, its picture and `sharing.jsonl` lie in the output.
All ways see the same tokens; mlm runs one model instead of two, so that its steps cost less.
The command takes `--minutes`, saves and ends with exit code 85; the same command goes on, and writes the page of what
there is each time. Exit codes: 0 all is done; 85 time was up or it was stopped; 2 a mistake, named in one line.
Tested by tests/experiments/test_embedding_sharing.py; docs/reproduction.md has commands and findings.
Not here: runs (sharing_runs.py), table and picture (sharing_page.py).
"""

import argparse
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.environment import describe_environment, device_name
from disentangled.finetune.probe import SUITES, Subject, probe, write_rows
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.interrupt import EXIT_SAVED
from experiments.sharing_page import write_page
from experiments.sharing_runs import VARIANTS, Plan, Run, RunFailed, is_trained, measure, plan_runs, train

FOLDER = Path(__file__).parent
SCORES_FILE = "scores.jsonl"


def parse_arguments(arguments: Sequence[str] | None) -> tuple[Plan, list[Run], argparse.Namespace]:
    """The plan, the runs, and the options as they were given.

    Raises:
        ValueError: a way that is not known, no seed, no time.
    """
    has_gpu = torch.cuda.is_available()
    parser = OneLineParser(prog="python -m experiments.embedding_sharing", description=__doc__.splitlines()[0])
    parser.add_argument("--shards", required=True, type=Path, metavar="DIR", help="a dataset of data_prep")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="runs and page; kept between calls")
    parser.add_argument("--recipe", default=str(FOLDER / f"sharing_{'gpu' if has_gpu else 'cpu'}.toml"), metavar="FILE")
    parser.add_argument("--engine", default="zero1_bf16" if has_gpu else "fp32_cpu")
    parser.add_argument("--processes", type=int, default=torch.cuda.device_count() or 2, help="(%(default)s)")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="of the pre-training (%(default)s)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for this call (%(default)s)")
    parser.add_argument("--tasks", type=Path, metavar="DIR", help="data of the fine-tuned tasks; none without")
    parser.add_argument("--suite", choices=sorted(SUITES), default="quick", help="which tasks (%(default)s)")
    parser.add_argument("--task-seeds", type=int, default=1, help="fine-tunings of each model and task (%(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="recipe keys to change")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.variants) - set(VARIANTS))
    if unknown:
        raise ValueError(f"--variants {unknown[0]}: it must be one of {', '.join(VARIANTS)}")
    for name in ("seeds", "minutes", "processes", "task_seeds"):
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(options, name)}: it must be above 0")
    plan = Plan(options.recipe, options.engine, options.processes, options.shards, tuple(options.set))
    plan.config()  # a recipe that cannot be read is told before anything runs
    return plan, plan_runs(options.output, options.variants, options.seeds), options


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what there is time for, measure what is trained, write the page; returns the exit code."""
    started = time.monotonic()
    try:
        plan, runs, options = parse_arguments(arguments)
        output, deadline = options.output, started + 60 * options.minutes
        for run in runs:
            if not is_trained(run, plan) and not train(run, plan, deadline):
                break
            measure(run)
        trained = [run for run in runs if is_trained(run, plan)]
        is_done = len(trained) == len(runs)
        if options.tasks is not None and trained:
            subjects = [Subject(run.folder.name, run.exported) for run in trained]
            untrained = Subject("from scratch", trained[0].exported, from_scratch=True)
            subjects = [untrained, *subjects]
            scores = probe(subjects, SUITES[options.suite], options.tasks, output / "tasks", options.task_seeds)
            write_rows(output / SCORES_FILE, scores)
        command = ["python", "-m", "experiments.embedding_sharing", *(sys.argv[1:] if arguments is None else arguments)]
        head = describe_environment(device_name(), ("torch", "deepspeed", "transformers"), command)
        output.mkdir(parents=True, exist_ok=True)
        page = write_page(output, runs, plan.config().schedule.total_steps, output / SCORES_FILE, head)
    except RunFailed as error:
        print_error(error)
        return 1
    except KeyboardInterrupt:
        say("stopped: the same command goes on")
        return EXIT_SAVED
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    say(f"{len(trained)} of {len(runs)} runs are trained: {page}")
    if not is_done:
        say(f"time is up; to go on: {shlex.join(command)}")
    return 0 if is_done else EXIT_SAVED


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as a Ctrl-C: the run under way saves
    sys.exit(main())
