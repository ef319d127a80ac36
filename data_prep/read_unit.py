"""The documents of a unit as the dataset takes them: read, cut, cleaned, without the copies named beforehand.

Both passes over the text use it, so they see the same documents. What is left out is told to a Rejects, with place
and reason.

Used by: scan_unit.py, encode_unit.py. Tested by: tests/data_prep/test_read_unit.py.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from disentangled.data_prep.clean import CleaningRules, clean_text
from disentangled.data_prep.cut_document import cut_document
from disentangled.data_prep.read_part import read_part
from disentangled.data_prep.read_text import BadText
from disentangled.data_prep.sample_text import DocumentPlace
from disentangled.data_prep.work_units import Part, Unit

BAD_TEXT, DUPLICATE, NEAR_DUPLICATE, EMPTY = "bad text", "duplicate", "near-duplicate", "no token"
CUT = "cut into several"
# what rejects.jsonl shows of a document
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Repeat:
    """Why a document is left out that repeats another: DUPLICATE or NEAR_DUPLICATE, and where the other lies."""

    reason: str
    file: str
    start_byte: int
    piece: int

    def describe(self) -> dict[str, Any]:
        """Return the other's place as rejects.jsonl has it."""
        return describe_place(self.file, self.start_byte, self.piece)


@dataclass(frozen=True)
class PlacedDocument:
    """A cleaned document, its UTF-8 bytes, the part and byte (row, in a table) that it comes from, and which piece it
    is of what begins there."""

    text: str
    utf8: bytes
    part: Part
    start_byte: int
    piece: int

    @property
    def place(self) -> DocumentPlace:
        """Where it lies among all inputs."""
        return self.part.file_index, self.start_byte, self.piece


@dataclass
class Rejects:
    """What a unit leaves out or changes: numbers by reason, and a line of JSON for each document left out."""

    source: str
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    rows: list[tuple[DocumentPlace, str]] = field(default_factory=list)

    def add(
        self, part: Part, start_byte: int, piece: int, reason: str, detail: str, repeat: Repeat | None = None
    ) -> None:
        """Note a document; detail is the head of its text, or what is wrong with it."""
        self.reasons[reason] += 1
        row = {"source": self.source, **describe_place(part.file.name, start_byte, piece), "reason": reason}
        row |= {"repeats": repeat.describe()} if repeat else {}
        line = json.dumps(row | {"detail": detail[:_SHOWN_CHARACTERS]}) + "\n"
        self.rows.append(((part.file_index, start_byte, piece), line))

    def encode(self) -> bytes:
        """Return the lines in the order of the documents."""
        return "".join(line for _, line in sorted(self.rows)).encode()


def describe_place(file: str, start_byte: int, piece: int) -> dict[str, Any]:
    """Return a document's place as rejects.jsonl has it; only what was cut has pieces, the first is 0."""
    return {"file": file, "doc": start_byte, **({"piece": piece} if piece else {})}


def read_unit(
    unit: Unit,
    text_field: str,
    skip_bad_text: bool,
    rules: CleaningRules,
    copies: Mapping[DocumentPlace, Repeat],
    rejects: Rejects,
) -> Iterator[PlacedDocument]:
    """Yield the documents of a unit that are left after cleaning, in order; `copies` are left out too."""
    for part in unit.parts:
        bad_text = BadText(skip_bad_text)
        for document in read_part(part, text_field, bad_text):
            texts = cut_document(document.text, rules.split_documents)
            rejects.changes.update([CUT] if len(texts) > 1 else [])
            for piece, text in enumerate(texts):
                cleaned = clean_text(text, rules)
                rejects.changes.update(cleaned.changes)
                repeat = copies.get((part.file_index, document.start_byte, piece))
                if cleaned.reject:
                    rejects.add(part, document.start_byte, piece, cleaned.reject, cleaned.text)
                elif repeat:
                    rejects.add(part, document.start_byte, piece, repeat.reason, cleaned.text, repeat)
                else:
                    yield PlacedDocument(cleaned.text, cleaned.text.encode(), part, document.start_byte, piece)
        for start_byte, fault in bad_text.faults:
            rejects.add(part, start_byte, 0, BAD_TEXT, fault)
