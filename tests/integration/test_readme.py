"""The README's own commands, typed as they stand there, on a small text and cut to a few steps."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from transformers import AutoModel

from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.launching import ROOT, run_command
from tests.trainer.tiny_run import SMALLEST

README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands_of(heading: str) -> list[str]:
    """The command lines of the first code block below a heading."""
    block = re.search(rf"^## {heading}\n+```\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert block, f"README.md has no code block below {heading!r}"
    return [line for line in block[1].splitlines() if not line.startswith("make")]


def test_own_text_commands_work_in_order(tmp_path: Path):
    (tmp_path / "my_text").mkdir()
    write_txt(tmp_path / "my_text" / "corpus.txt", make_documents(300))
    for line in commands_of("Train on your own text"):
        program, *words = shlex.split(line)
        assert program == ".venv/bin/python"
        words = [re.sub(r"\bmy_(\w+)", lambda match: str(tmp_path / match[0]), word) for word in words]
        words = ["512" if word == "32000" else word for word in words]  # pieces that this small text allows
        if "disentangled.trainer.launch" in words:
            words += [*SMALLEST, "schedule.total_steps=4", "log.every_steps=2"]
        finished = run_command(sys.executable, *words)
        assert finished.code == 0, f"{line}\n{finished}"
    assert AutoModel.from_pretrained(tmp_path / "my_model").config.hidden_size == 32
    assert (tmp_path / "my_run" / "report.html").is_file()


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", README, re.MULTILINE))
def test_make_targets_exist(target: str):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([\w./-]+)\)|`((?:docs|recipes|ds_configs)/[\w./-]*)`", README)))
)
def test_named_files_exist(path: tuple[str, str]):
    assert (ROOT / "".join(path)).exists()


def test_named_recipes_and_engines_exist():
    for name in re.findall(r"--recipe ([\w./]+)", README):
        recipe = ROOT / name if name.endswith(".toml") else ROOT / "recipes" / f"{name}.toml"
        assert recipe.is_file(), name
    for name in re.findall(r"--engine (\w+)", README):
        assert (ROOT / "ds_configs" / f"{name}.json").is_file()
