"""The fine-tuning command: `python -m disentangled.finetune --task NAME --model HF_DIR --data DIR --output DIR`.

Exit codes: 0 done; 2 something to mend, in one line; 130 Ctrl-C: the same command goes on from the last checkpoint.
Used by: users, by __main__.py. Tested by tests/finetune/test_bad_input.py, test_deepspeed_launch.py.
Not here: arguments (arguments.py), runs (run_task.py).
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from transformers import AutoConfig

from disentangled.finetune.arguments import make_options, make_parser
from disentangled.finetune.command_line import EXIT_USER_ERROR, print_error, say
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.run_task import Results, finetune, format_metrics
from disentangled.finetune.search import format_table, search
from disentangled.finetune.search_grid import GRIDS, change_grid, guess_size, list_settings


def run_search(options: FinetuneOptions, parsed: argparse.Namespace) -> Results:
    """Search the grid that the arguments name, say the table, and return the picked run's results."""
    if options.ds_config is not None:
        raise ValueError("--search runs without --ds-config: start one search a GPU, or one run with the setting found")
    size = parsed.size or guess_size(AutoConfig.from_pretrained(options.model))
    grid = change_grid(GRIDS[size], parsed.grid)
    say(f"searching table 11's grid for {size} models: {len(list_settings(grid))} settings, {len(parsed.seeds)} seeds")
    table, results = search(options, grid, parsed.seeds)
    for line in format_table(table, results.selection).splitlines():
        say(line)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        parsed = make_parser().parse_args(arguments)
        options = make_options(parsed)
        results = run_search(options, parsed) if parsed.search else finetune(options)
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT
    for line in format_metrics(results):
        say(line)
    say(f"wrote {options.output}")
    return 0
