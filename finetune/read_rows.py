"""Rows of .tsv, .csv and .jsonl files, each with the place it came from.

- .tsv (and .txt): fields between tabs, quotes are ordinary characters, as GLUE and XNLI are written;
- .csv: fields between commas, quoted where needed;
- .jsonl (and .json): one JSON object a line.
Lines end at a line feed and nowhere else: XNLI's texts hold Unicode's own line separators. Text is UTF-8.
Used by: read_sequences.py, read_choices.py, read_squad.py. Tested by tests/finetune/test_read_rows.py.
Not here: what the columns mean.
"""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO


@dataclass(frozen=True)
class Row:
    """One example as its file has it: fields by column, and `file:line`."""

    place: str
    fields: dict[str, Any]

    def text(self, column: str) -> str:
        """A field as text; ValueError where the column is missing or holds anything but text or a number."""
        value = self.value(column)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError(f"{self.place}: column {column!r} holds {value!r}: it must be text or a number")
        return str(value)

    def value(self, column: str) -> Any:
        """A field; ValueError where the column is missing."""
        if column not in self.fields:
            raise ValueError(
                f"{self.place}: column {column!r} is missing; there are {', '.join(map(repr, self.fields))}: "
                "add it, or name the right one of your own data with --text-columns, --choice-columns, --label-column"
            )
        return self.fields[column]


@contextmanager
def open_text(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """The file for reading, a byte order mark passed over; ValueError where it is not UTF-8."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}): convert it first") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """(place, line) of each line, without its end."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            yield f"{path}:{number}", line.removesuffix("\n").removesuffix("\r")


def read_rows(path: Path, positions: tuple[str, ...] | None = None, broken: list[str] | None = None) -> Iterator[Row]:
    """The rows of a file, by the ending of its name.

    Args:
        positions: the columns of a .tsv or .csv without a header line; trailing ones may be absent.
        broken: where given, rows with another number of fields than the header are left out and their places added.

    Raises:
        ValueError: an unknown ending, a broken line (its number is named), no UTF-8.
    """
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".json"):
        yield from _read_json_lines(path)
    elif suffix == ".csv":
        yield from _name_fields(_read_csv(path), positions, broken)
    elif suffix in (".tsv", ".txt"):
        lines = ((place, line.split("\t")) for place, line in read_lines(path) if line)
        yield from _name_fields(lines, positions, broken)
    else:
        raise ValueError(f"{path}: the ending {suffix!r} says no format: name it .tsv, .csv or .jsonl")


def parse_object(place: str, text: str) -> dict[str, Any]:
    """The JSON object of a line or file; ValueError names the place and what is wrong."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{place}: a JSON object is expected, {{...}}, not {type(found).__name__}")
    return found


def _read_json_lines(path: Path) -> Iterator[Row]:
    for place, line in read_lines(path):
        if line.strip():
            yield Row(place, parse_object(place, line))


def _read_csv(path: Path) -> Iterator[tuple[str, list[str]]]:
    with open_text(path, newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for fields in reader:
                if fields:
                    yield f"{path}:{reader.line_num}", fields
        except csv.Error as error:
            raise ValueError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _name_fields(
    lines: Iterator[tuple[str, list[str]]], positions: tuple[str, ...] | None, broken: list[str] | None
) -> Iterator[Row]:
    """Rows with their columns' names: given ones, or the first line's."""
    header = positions
    for place, fields in lines:
        if header is None:
            header = tuple(fields)
            continue
        fits = len(fields) == len(header) if positions is None else len(fields) <= len(header)
        if fits:
            yield Row(place, dict(zip(header, fields, strict=False)))
        elif broken is not None:
            broken.append(place)
        else:
            raise ValueError(f"{place}: {len(fields)} fields where {len(header)} columns are: {', '.join(header)}")
