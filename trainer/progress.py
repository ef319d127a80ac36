"""A progress bar below the console's lines, on a terminal only: nothing of it reaches a file or a pipe.

What: steps done and the time left as trainer/pace.py has it. It is drawn between steps and never by a thread of its
own, so a terminal that is gone costs the bar and not the run.
Used by: trainer/loop.py. Tested by tests/trainer/test_progress.py.
"""

import contextlib
import sys
import time
import types
from collections.abc import Iterator
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from disentangled.trainer.metric_log import clock

REDRAW_SECONDS = 0.2


class ProgressBar:
    """The bar while a `with` block runs; does nothing where `is_wanted` is false or stdout is no terminal."""

    def __init__(self, total_steps: int, step: int, is_wanted: bool) -> None:
        self._bar: Progress | None = None
        self._drawn = 0.0
        if is_wanted and sys.stdout.isatty():
            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[left]}"))
            self._bar = Progress(
                *columns,
                console=Console(),
                auto_refresh=False,
                transient=True,
                redirect_stderr=sys.stderr.isatty(),  # else what goes to a file of errors would be shown here
            )
            self._task = self._bar.add_task("", total=total_steps, completed=step, left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            with self._until_it_fails():
                self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()

    def update(self, step: int, remaining_seconds: float | None) -> None:
        """Show that `step` updates are done; draws a few times a second at most."""
        if self._bar is None or time.monotonic() - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = time.monotonic()
        left = "" if remaining_seconds is None else f"{clock(remaining_seconds)} left"
        with self._until_it_fails():
            self._bar.update(self._task, completed=step, left=left, refresh=True)

    @contextlib.contextmanager
    def _until_it_fails(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # the terminal is gone
            bar, self._bar = self._bar, None
            if bar is not None:
                with contextlib.suppress(OSError):
                    bar.stop()
