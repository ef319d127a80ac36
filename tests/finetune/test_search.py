"""The search: table 11's grid, the order of settings, picking by the median, and going on without repeating a run."""

from pathlib import Path

import pytest
from transformers import DebertaV2Config

from disentangled.finetune import search as search_module
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.run_task import Results
from disentangled.finetune.search import format_table, rank_settings, search, setting_name
from disentangled.finetune.search_grid import GRIDS, change_grid, guess_size, list_settings

SCORES = {(1e-5, 1): 0.5, (1e-5, 2): 0.9, (1e-5, 3): 0.6, (2e-5, 1): 0.7, (2e-5, 2): 0.8, (2e-5, 3): 0.1}
GRID = {"learning_rate": (1e-5, 2e-5), "batch_size": (16,)}


def test_grids_are_as_large_as_table_11s() -> None:
    assert {size: len(list_settings(grid)) for size, grid in GRIDS.items()} == {
        "large": 3 * 4 * 4 * 3,
        **dict.fromkeys(("base", "small", "mdeberta_base"), 3 * 4 * 4 * 4),
    }


@pytest.mark.parametrize(
    ("width", "layers", "size"), [(1024, 24, "large"), (768, 12, "base"), (768, 6, "small"), (384, 12, "small")]
)
def test_sizes_are_those_of_the_paper(width: int, layers: int, size: str) -> None:
    assert guess_size(DebertaV2Config(hidden_size=width, num_hidden_layers=layers)) == size


def test_grids_are_changed_by_name() -> None:
    changed = change_grid(GRIDS["base"], ["batch-size=8,16", "learning_rate=1e-4"])
    assert changed["batch_size"] == (8, 16) and changed["learning_rate"] == (1e-4,)
    assert changed["warmup_steps"] == GRIDS["base"]["warmup_steps"]
    with pytest.raises(ValueError, match="batch_size takes numbers"):
        change_grid(GRIDS["base"], ["batch_size=1.5"])


def test_search_picks_the_best_median_and_trains_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FinetuneOptions] = []

    def run(options: FinetuneOptions) -> Results:
        runs.append(options)
        return Results("accuracy", SCORES[options.learning_rate, options.seed], {}, {})

    monkeypatch.setattr(search_module, "finetune", run)
    table, results = search(FinetuneOptions("cola", "m", tmp_path), GRID, (1, 2, 3))
    assert [row.setting["learning_rate"] for row in table] == [2e-5, 1e-5]
    assert (table[0].median, table[0].lowest, table[0].highest) == (0.7, 0.1, 0.8)
    assert len(runs) == 7 and len({options.output for options in runs}) == 7
    assert [options.save_model for options in runs] == [False] * 6 + [True]
    assert (runs[-1].output, runs[-1].seed, results.selected) == (tmp_path / "best", 2, 0.8)
    page = (tmp_path / "search.md").read_text(encoding="utf-8")
    assert page == format_table(table, "accuracy") and page.count("\n") == 4
    assert "| 2e-05 | 16 | 3 | 0.7000 | 0.1000 | 0.8000 | 0.3786 |" in page


def test_equal_medians_keep_the_grids_order() -> None:
    settings = list_settings(GRID)
    found = {setting_name(setting): {1: 0.5} for setting in settings}
    assert [row.setting for row in rank_settings(settings, found)] == settings


def test_no_seed_or_one_twice_is_refused(tmp_path: Path) -> None:
    for seeds in ((), (1, 1)):
        with pytest.raises(ValueError, match="seeds are"):
            search(FinetuneOptions("cola", "m", tmp_path), GRID, seeds)
