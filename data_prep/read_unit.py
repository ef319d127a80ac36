"""The documents of a unit as the dataset takes them: read, cleaned, and without the copies named beforehand.

Both passes over the text use it, so they see the same documents. What is left out is told to a Rejects, with place
and reason.

Used by: scan_unit.py, encode_unit.py. Tested by: tests/data_prep/test_read_unit.py.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from disentangled.data_prep.clean import CleaningRules, clean_text
from disentangled.data_prep.read_part import read_part
from disentangled.data_prep.read_text import BadText
from disentangled.data_prep.sample_text import DocumentPlace
from disentangled.data_prep.work_units import Part, Unit

BAD_TEXT, DUPLICATE, EMPTY = "bad text", "duplicate", "no token"
# what rejects.jsonl shows of a document
_SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class PlacedDocument:
    """A cleaned document, its UTF-8 bytes, and the part and byte (row, in a table) that it comes from."""

    text: str
    utf8: bytes
    part: Part
    start_byte: int

    @property
    def place(self) -> DocumentPlace:
        """Where it lies among all inputs."""
        return self.part.file_index, self.start_byte


@dataclass
class Rejects:
    """What a unit leaves out or changes: numbers by reason, and a line of JSON for each document left out."""

    source: str
    reasons: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    rows: list[tuple[DocumentPlace, str]] = field(default_factory=list)

    def add(self, part: Part, start_byte: int, reason: str, detail: str) -> None:
        """Note a document; detail is the head of its text, or what is wrong with it."""
        self.reasons[reason] += 1
        row = {"source": self.source, "file": part.file.name, "doc": start_byte, "reason": reason}
        line = json.dumps(row | {"detail": detail[:_SHOWN_CHARACTERS]}) + "\n"
        self.rows.append(((part.file_index, start_byte), line))

    def encode(self) -> bytes:
        """Return the lines in the order of the documents."""
        return "".join(line for _, line in sorted(self.rows)).encode()


def read_unit(
    unit: Unit,
    text_field: str,
    skip_bad_text: bool,
    rules: CleaningRules,
    copies: Collection[DocumentPlace],
    rejects: Rejects,
) -> Iterator[PlacedDocument]:
    """Yield the documents of a unit that are left after cleaning, in order; `copies` are left out too."""
    for part in unit.parts:
        bad_text = BadText(skip_bad_text)
        for document in read_part(part, text_field, bad_text):
            cleaned = clean_text(document.text, rules)
            rejects.changes.update(cleaned.changes)
            reason = cleaned.reject
            if not reason and (part.file_index, document.start_byte) in copies:
                reason = DUPLICATE
            if reason:
                rejects.add(part, document.start_byte, reason, cleaned.text)
            else:
                yield PlacedDocument(cleaned.text, cleaned.text.encode(), part, document.start_byte)
        for start_byte, fault in bad_text.faults:
            rejects.add(part, start_byte, BAD_TEXT, fault)
