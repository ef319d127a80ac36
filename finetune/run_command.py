"""The fine-tuning command: `python -m disentangled.finetune --task NAME --model HF_DIR --data DIR --output DIR`.

Exit codes: 0 done; 2 something to mend, in one line; 130 Ctrl-C: the same command goes on from the last checkpoint.
Used by: users, by __main__.py. Tested by tests/finetune/test_command.py, test_bad_input.py.
Not here: arguments (arguments.py), runs (run_task.py).
"""

import signal
import sys
from collections.abc import Sequence

from disentangled.finetune.arguments import make_options, make_parser
from disentangled.finetune.command_line import EXIT_USER_ERROR, print_error, say
from disentangled.finetune.run_task import finetune, format_metrics


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        options = make_options(make_parser().parse_args(arguments))
        results = finetune(options)
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
