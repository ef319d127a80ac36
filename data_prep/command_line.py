"""What the commands of data_prep have in common: a user's mistake gives one line on stderr and no traceback.

Exit codes: 0 done, 2 a mistake or a full disk (`error: thing: rule: remedy`), 130 Ctrl-C, 143 SIGTERM.
Used by: build_corpus.py, inspect_shard.py. Tested by: tests/data_prep/test_command_line.py.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

EXIT_MISTAKE = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_TERMINATED = 128 + signal.SIGTERM


class OneLineParser(argparse.ArgumentParser):
    """A parser that refuses with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_MISTAKE, f"error: {message}: see --help\n")


def run_command(command: Callable[[], None], consequence: str) -> int:
    """Run command and return the exit code; consequence says what an interruption has left behind."""
    previous = signal.signal(signal.SIGTERM, _exit_terminated)
    try:
        command()
    except KeyboardInterrupt:
        return _print_error(f"interrupted: {consequence}", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # the reader, such as `head`, has seen enough; the exit must not flush into the closed pipe again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return _print_error(_describe_os_error(error), EXIT_MISTAKE)
    except ValueError as error:
        return _print_error(str(error), EXIT_MISTAKE)
    except SystemExit as stop:
        if stop.code != EXIT_TERMINATED:
            raise
        return _print_error(f"terminated: {consequence}", EXIT_TERMINATED)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0


def _exit_terminated(number: int, frame: FrameType | None) -> NoReturn:
    """Turn SIGTERM into an exception, so that the command cleans up after itself."""
    raise SystemExit(EXIT_TERMINATED)


def _print_error(message: str, code: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _describe_os_error(error: OSError) -> str:
    """Return the error as thing, rule and, for a full disk, remedy."""
    if error.strerror is None or error.filename is None:
        return str(error)
    remedy = ": free some space there or name another --output" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return f"{error.filename}: {error.strerror.lower()}{remedy}"
