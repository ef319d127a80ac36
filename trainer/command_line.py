"""What the trainer's commands share: arguments whose faults are one line, exit codes, and a console that may vanish.

Used by: trainer/train.py, trainer/launch.py, trainer/metric_log.py. Tested by tests/trainer/test_command_line.py.
"""

import argparse
import os
import sys
from typing import NoReturn

EXIT_USER_ERROR = 2


class OneLineParser(argparse.ArgumentParser):
    """Raises ValueError, without the usage, where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        raise ValueError(f"{message}; --help lists what there is")


def print_error(error: Exception) -> None:
    """Say what the user must mend, in one line on stderr."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line; a terminal or pipe that is gone silences this process instead of ending hours of training."""
    try:
        print(line, flush=True)
    except OSError:
        # what is still buffered must go somewhere: flushed into the gone pipe at exit it would make the exit code 120
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
