"""Where text comes from: named sources with weights, such as languages, read from a TOML file.

    [[source]]
    name = "sw"
    weight = 1.0                     # left out: 1
    input = ["sw/*.txt.zst"]         # files, folders, globs, URLs; relative to the TOML file

A source has its own shards. Its weight multiplies its share of the tokenizer's sample, and the manifest hands it on to
the trainer. Without such a file there is one source, `text`.

Used by: build_corpus.py. Tested by: tests/data_prep/test_sources.py.
"""

import math
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from disentangled.data_prep.input_store import parse_url

DEFAULT_NAME = "text"
_KEYS = ("name", "weight", "input")


@dataclass(frozen=True)
class Source:
    """A name, a weight, and the files, folders and globs that hold its text."""

    name: str
    weight: float
    inputs: tuple[str, ...]


def load_sources(path: str | Path) -> tuple[Source, ...]:
    """Read a TOML file of sources; ValueError for a file that does not say what it must."""
    try:
        content = tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file: check --sources") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML ({error}): correct it") from None
    tables = content.get("source")
    if not isinstance(tables, list) or not tables or set(content) != {"source"}:
        raise ValueError(f"{path}: holds no list of sources: write one [[source]] table for each, and nothing else")
    sources = tuple(_parse_source(table, f"{path}: source {number}") for number, table in enumerate(tables, 1))
    names = [source.name for source in sources]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: source {name!r} is listed twice: put its inputs together or rename one")
    if sum(source.weight for source in sources) <= 0:
        raise ValueError(f"{path}: the weights sum to nothing: give at least one source a weight above 0")
    folder = os.path.dirname(path)
    return tuple(
        Source(
            source.name,
            source.weight,
            tuple(name if parse_url(name) else os.path.join(folder, name) for name in source.inputs),
        )
        for source in sources
    )


def _parse_source(table: Any, where: str) -> Source:
    """Return one source, its inputs as they are written."""
    if not isinstance(table, dict):
        raise ValueError(f"{where} is no table: write it below a line [[source]]")
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise ValueError(f"{where} has an unknown key {unknown[0]!r}: its keys are {', '.join(_KEYS)}")
    name, weight, inputs = table.get("name"), table.get("weight", 1.0), table.get("input")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError(f"{where}: name is {name!r}: give it one of letters, digits and underscores")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight) or weight < 0:
        raise ValueError(f"{where}, {name!r}: weight is {weight!r}: give a number of 0 or more")
    if isinstance(inputs, str):
        inputs = [inputs]
    if not isinstance(inputs, list) or not inputs or not all(isinstance(path, str) for path in inputs):
        raise ValueError(f"{where}, {name!r}: input is {inputs!r}: give a list of files, folders or globs")
    return Source(name, float(weight), tuple(inputs))
