"""A training process: `deepspeed --module disentangled.trainer.train --recipe R --engine E [section.key=value ...]`.

What: reads the recipe and the DeepSpeed JSON, opens the shards, builds both engines, resumes from the newest whole
checkpoint of run.dir if there is one, and runs the loop. Launch it with `deepspeed`, or with
`python -m disentangled.trainer.launch`, which also survives being told to stop.
Exit codes: 0 done; 85 saved before the end, run the same command again; 86 made no progress (trainer/watchdog.py), run
it again too; 2 something to mend, named in one line.
Used by: users, trainer/launch.py, trainer/demo.py. Tested by tests/integration/.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from disentangled.trainer.assemble import build_training
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error, say
from disentangled.trainer.distributed import leave_ranks, share_threads
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.faults import FaultError
from disentangled.trainer.foreign_launchers import rank_variables
from disentangled.trainer.interrupt import EXIT_SAVED, Interrupt
from disentangled.trainer.loader import DataError
from disentangled.trainer.loop import train
from disentangled.trainer.lost_worker import describe_lost_worker, is_lost_worker
from disentangled.trainer.out_of_memory import describe_out_of_memory, is_out_of_memory
from disentangled.trainer.run_config import load_run_config
from disentangled.trainer.saving import SaveError

# how long a rank with bad news waits for the first rank of its host to tell it, before it does so itself
SPEAK_UP_SECONDS = 30


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; everything but the two files is an override of a recipe key."""
    parser = OneLineParser(prog="disentangled.trainer.train", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--engine", required=True, help="DeepSpeed JSON, or the name of a shipped one")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher adds it
    parser.add_argument("--launch-id", default="", help=argparse.SUPPRESS)  # by which the launcher finds its ranks
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    return parser.parse_intermixed_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; returns its exit code."""
    os.environ.update(rank_variables(os.environ))
    try:
        return run(arguments)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print_error(MemoryError(describe_out_of_memory(error)))
        return EXIT_USER_ERROR


def run(arguments: Sequence[str] | None) -> int:
    """The same, where memory suffices."""
    try:
        options = parse_arguments(arguments)
        interrupt = Interrupt(options.launch_id)
        config = load_run_config(options.recipe, options.overrides)
        training = build_training(config, load_ds_config(options.engine))
    except (ValueError, OSError) as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(SPEAK_UP_SECONDS)  # the launcher ends this rank as soon as the first one has spoken and left
        print_error(error)
        leave_ranks()
        return EXIT_USER_ERROR
    interrupt.catch_signals()
    try:
        finished = train(training, interrupt)
    except (DataError, FaultError, SaveError) as error:
        if training.ranks.is_first:
            print_error(error)
        training.tell("stop", str(error))
        leave_ranks()
        return EXIT_USER_ERROR
    except RuntimeError as error:
        if not is_lost_worker(error):
            raise
        print_error(ChildProcessError(describe_lost_worker(error, config.data)))
        return EXIT_USER_ERROR
    ending = "done" if finished else f"stopped ({interrupt.reason() or 'another rank was asked to'}), saved"
    training.tell("done" if finished else "stop", ending)
    if training.log is not None:
        training.log.close()
        say(f"{ending} at step {training.step}: {config.run.dir}")
    leave_ranks()
    return 0 if finished else EXIT_SAVED


if __name__ == "__main__":
    share_threads()
    sys.exit(main())
