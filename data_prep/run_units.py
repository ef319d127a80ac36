"""Runs a job on all units of a build, moves the progress bar, and gathers what went wrong.

Used by: build_corpus.py, prepare_text.py. Tested by: tests/data_prep/test_build_failures.py.
Not here: in which processes (task_pool.py).
"""

from collections.abc import Callable, Sequence
from typing import Any

from rich.progress import Progress

from disentangled.data_prep.task_pool import Failure, TaskPool
from disentangled.data_prep.work_units import Unit


def run_units(
    pool: TaskPool,
    job: Callable[[Any], Any],
    units: Sequence[Unit],
    tasks: Sequence[Any],
    on_done: Callable[[Any], None],
    progress: Progress,
    title: str,
) -> list[Failure]:
    """Run job on the tasks, one for each unit, largest first; return the failures in the order of the units."""
    order = sorted(range(len(units)), key=lambda index: -units[index].size_bytes)
    bar = progress.add_task(title, total=sum(unit.size_bytes for unit in units))
    failures: dict[int, Failure] = {}
    for place, outcome in pool.run(job, [tasks[index] for index in order]):
        index = order[place]
        if isinstance(outcome, Failure):
            failures[index] = outcome
        else:
            on_done(outcome)
        progress.advance(bar, units[index].size_bytes)
    return [failures[index] for index in sorted(failures)]


def refuse_failures(failures: Sequence[Failure], kept: str) -> None:
    """Raise the first failure, if there is one, with the number of the others and what is kept nevertheless."""
    if not failures:
        return
    # what the machine refuses comes first: it is what stopped the others
    first = next((failure for failure in failures if isinstance(failure, OSError)), failures[0])
    if isinstance(first, OSError):
        raise first
    others = f" (and {len(failures) - 1} more of this kind)" if len(failures) > 1 else ""
    raise ValueError(f"{first}{others}{kept}")
