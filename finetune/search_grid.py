"""Table 11 of arXiv 2111.09543: the values that fine-tuning was searched over, by the model's size.

Used by: search.py. Tested by tests/finetune/test_search.py.
Not here: what has one value in the table (options.py's defaults).
"""

import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig

Grid = dict[str, tuple[Any, ...]]  # an option's values

WARMUP_STEPS = (50, 100, 500, 1000)
BASE: Grid = {
    "task_dropout": (0.0, 0.1, 0.15),
    "warmup_steps": WARMUP_STEPS,
    "learning_rate": (1.5e-5, 2e-5, 2.5e-5, 3e-5),
    "batch_size": (16, 32, 48, 64),
}
GRIDS: dict[str, Grid] = {
    "large": {
        "task_dropout": (0.0, 0.15, 0.3),
        "warmup_steps": WARMUP_STEPS,
        "learning_rate": (5e-6, 8e-6, 9e-6, 1e-5),
        "batch_size": (16, 32, 64),
    },
    "base": BASE,
    "small": BASE | {"learning_rate": (1.5e-5, 2e-5, 3e-5, 4e-5)},
    "mdeberta_base": BASE,
}


def guess_size(config: PretrainedConfig) -> str:
    """The table's column for a model: large from width 1,024 on, base from 12 layers of 768, else small."""
    if config.hidden_size >= 1024:
        return "large"
    return "base" if config.hidden_size >= 768 and config.num_hidden_layers >= 12 else "small"


def change_grid(grid: Grid, changes: Sequence[str]) -> Grid:
    """The grid with values given as `option=v1,v2`.

    Raises:
        ValueError: an option that the grid does not have, or a value that is no number.
    """
    changed = dict(grid)
    for text in changes:
        name, _, values = text.partition("=")
        name = name.replace("-", "_")
        if name not in grid:
            raise ValueError(f"--grid {text}: choose one of {', '.join(grid)}, as in learning_rate=1e-5,2e-5")
        kind = type(grid[name][0])
        try:
            changed[name] = tuple(kind(value) for value in values.split(","))
        except ValueError as error:
            raise ValueError(f"--grid {text}: {name} takes numbers between commas ({error})") from error
    return changed


def list_settings(grid: Grid) -> list[dict[str, Any]]:
    """Every point of the grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
