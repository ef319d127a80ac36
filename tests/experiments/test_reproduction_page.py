"""docs/reproduction.md: its commands are understood; each is run, small, by the tests of its own."""

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from disentangled.data_prep import build_corpus
from disentangled.finetune import probe
from disentangled.trainer import embedding_cosine
from experiments import embedding_sharing, gradient_conflict
from tests.launching import ROOT

PAGE = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^\.venv/bin/python -m (\S+) (.*)$", PAGE, re.MULTILINE)
MODULES: dict[str, Any] = {
    "disentangled.data_prep.build_corpus": build_corpus,
    "disentangled.finetune.probe": probe,
    "disentangled.trainer.embedding_cosine": embedding_cosine,
    "experiments.embedding_sharing": embedding_sharing,
    "experiments.gradient_conflict": gradient_conflict,
}


@pytest.mark.parametrize(("module", "words"), COMMANDS)
def test_command_is_understood(
    module: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every option is known: what is wrong is only that nothing lies where it points to."""
    monkeypatch.chdir(tmp_path)
    run: Callable[[Sequence[str]], int] = MODULES[module].main
    monkeypatch.setattr(embedding_sharing, "train", lambda *_: False)
    code = run(shlex.split(words))
    error = capsys.readouterr().err
    assert (code, error) == (85, "") or (code == 2 and "my_" in error and "unrecognized" not in error)


def test_page_names_each_command() -> None:
    assert {module for module, _ in COMMANDS} == MODULES.keys()
