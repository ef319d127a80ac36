"""`--search`: every setting of a grid with several seeds, picked on the development set; goes on where it was stopped.

    OUTPUT/runs/SETTING/seed_N/   a run as run_task.py leaves it, without its model
    OUTPUT/search.md, search.json a row a setting, best median first: median, lowest, highest, standard deviation
    OUTPUT/best/                  the picked setting with the seed of its best run, once more, with its model
The setting with the highest median over the seeds is picked, among equals the first of the grid. The number compared is
the task's first metric on the first development set, at each run's best epoch: it is chosen on that set, so report test
sets from `best`.
Used by: run_command.py. Tested by tests/finetune/test_search.py.
Not here: the grid (search_grid.py), a run (run_task.py).
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from disentangled.finetune.command_line import say
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.run_folder import write_json
from disentangled.finetune.run_task import Results, finetune
from disentangled.finetune.search_grid import Grid, list_settings


@dataclass(frozen=True)
class SettingScores:
    """What the seeds of one setting reached; `spread` is the sample's standard deviation, 0 of a single seed."""

    setting: dict[str, Any]
    by_seed: dict[int, float]
    median: float
    lowest: float
    highest: float
    spread: float


def search(options: FinetuneOptions, grid: Grid, seeds: Sequence[int]) -> tuple[list[SettingScores], Results]:
    """Run what of the grid is not there yet, write the table, train the picked setting with its model.

    Raises:
        ValueError: as `finetune`; no seeds.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds are {list(seeds)}: name one or more, each once")
    settings = list_settings(grid)
    runs = [(setting, seed) for setting in settings for seed in seeds]
    found: dict[str, dict[int, float]] = {}
    selection = ""
    for number, (setting, seed) in enumerate(runs, start=1):
        name = setting_name(setting)
        say(f"run {number} of {len(runs)}: {name}, seed {seed}")
        output = options.output / "runs" / name / f"seed_{seed}"
        results = finetune(replace(options, **setting, seed=seed, output=output, save_model=False))
        found.setdefault(name, {})[seed] = results.selected
        selection = results.selection
    table = rank_settings(settings, found)
    write_json(
        options.output / "search.json", {"selection": selection, "settings": [asdict(scores) for scores in table]}
    )
    (options.output / "search.md").write_text(format_table(table, selection), encoding="utf-8")
    best = table[0]
    seed = max(best.by_seed, key=lambda each: best.by_seed[each])
    say(f"picked {setting_name(best.setting)}: median {selection} {best.median:.4f}; again with seed {seed}")
    return table, finetune(replace(options, **best.setting, seed=seed, output=options.output / "best"))


def setting_name(setting: dict[str, Any]) -> str:
    """A setting as a folder's name."""
    return "_".join(f"{name.replace('_', '-')}={value:g}" for name, value in setting.items())


def rank_settings(settings: Sequence[dict[str, Any]], found: dict[str, dict[int, float]]) -> list[SettingScores]:
    """Settings by falling median; equal ones in the grid's order."""
    table = []
    for setting in settings:
        by_seed = found[setting_name(setting)]
        values = list(by_seed.values())
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        table.append(SettingScores(setting, by_seed, statistics.median(values), min(values), max(values), spread))
    return sorted(table, key=lambda scores: -scores.median)


def format_table(table: Sequence[SettingScores], selection: str) -> str:
    """The table in Markdown."""
    names = list(table[0].setting)
    lines = [
        f"| {' | '.join(names)} | seeds | median {selection} | lowest | highest | standard deviation |",
        "|" + "---|" * (len(names) + 5),
    ]
    for row in table:
        values = " | ".join(f"{row.setting[name]:g}" for name in names)
        numbers = f"{row.median:.4f} | {row.lowest:.4f} | {row.highest:.4f} | {row.spread:.4f}"
        lines.append(f"| {values} | {len(row.by_seed)} | {numbers} |")
    return "\n".join(lines) + "\n"
