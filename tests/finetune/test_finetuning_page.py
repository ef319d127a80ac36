"""docs/finetuning.md: its commands are understood, its program runs, its table is whole, its links lead somewhere."""

import re
import shlex
from pathlib import Path

import pytest

from disentangled.finetune.arguments import make_options, make_parser
from disentangled.finetune.ds_config import load_ds_config
from disentangled.finetune.options import resolve_task
from disentangled.finetune.search_grid import GRIDS, change_grid
from disentangled.finetune.tasks import BY_NAME
from tests.finetune.tiny_tasks import write_texts
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\.venv/bin/.*?disentangled\.finetune (.*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_are_understood(line: str) -> None:
    parsed = make_parser().parse_args(shlex.split(line))
    options = make_options(parsed)
    assert resolve_task(options).kind
    change_grid(GRIDS["base"], parsed.grid)
    if options.ds_config is not None:
        assert load_ds_config(options.ds_config, 2)


def test_program_runs(pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    Path("my_model").symlink_to(pretrained)
    for name in ("a", "b"):
        write_texts(Path(f"{name}.jsonl"), 4, 1)
    exec(program, {})
    assert (tmp_path / "my_run" / "results.json").is_file()


def test_table_has_every_task() -> None:
    rows = re.findall(r"^\| (`.*?`) \|", PAGE, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(BY_NAME)


@pytest.mark.parametrize("path", re.findall(r"\]\(([\w./-]+)\)", PAGE))
def test_named_files_exist(path: str) -> None:
    assert (ROOT / "docs" / path).exists()
