"""docs/corpora.md: its commands have options that exist, and its lists of sources are such."""

import re
from pathlib import Path

import pytest

from disentangled.data_prep.build_options import parse_options
from disentangled.data_prep.sources import load_sources

PAGE = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text("utf-8")
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [block for block in BLOCKS if "build_corpus" in block]
LISTS = [block for block in BLOCKS if "[[source]]" in block]


def test_page_has_commands_and_lists():
    assert (len(COMMANDS), len(LISTS)) == (2, 2)


@pytest.mark.parametrize("block", COMMANDS)
def test_command_is_understood(block: str):
    _, arguments = block.replace("\\\n", " ").split("build_corpus ")
    options = parse_options(arguments.split())
    assert options.sources and options.output


@pytest.mark.parametrize("block", LISTS)
def test_list_of_sources_is_understood(tmp_path: Path, block: str):
    (tmp_path / "sources.toml").write_text(block)
    assert len(load_sources(tmp_path / "sources.toml")) == block.count("[[source]]")
