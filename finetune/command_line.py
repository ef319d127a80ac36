"""What the fine-tuning command shares with no model: arguments whose faults are one line, the exit code, the rank.

Used by: run_command.py, run_task.py, search.py. Tested by tests/finetune/test_bad_input.py.
Not here: which arguments there are (arguments.py).
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


def is_first_process() -> bool:
    """Whether this process speaks and writes for all, as far as a launcher's environment says."""
    return int(os.environ.get("RANK", "0")) == 0


def print_error(error: Exception) -> None:
    """Say what the user must mend, in one line on stderr, once a launch."""
    if is_first_process():
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Print a line, once a launch."""
    if is_first_process():
        print(line, flush=True)
