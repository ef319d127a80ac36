"""Changes a document's text, or rejects the document, by rules that look at it alone. All are off by default.

    normalize        a Unicode normalization form
    strip_controls   control characters, but newline and tab, become spaces
    min_, max_characters   shorter and longer documents are rejected

The tokenizer normalizes too (nmt_nfkc where it is trained here); what is done here also decides which documents are
copies of each other, on which side of the split they fall and what their length is.

Used by: read_unit.py. Tested by: tests/data_prep/test_clean.py.
Not here: copies (find_duplicates.py), text that cannot be read (read_text.py).
"""

import dataclasses
import unicodedata
from dataclasses import dataclass
from typing import Literal

Form = Literal["none", "NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("none", "NFC", "NFD", "NFKC", "NFKD")

_CONTROLS = {code: " " for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\n\t"}


@dataclass(frozen=True)
class CleaningRules:
    """What to do with each document; max_characters 0 is no limit."""

    normalize: Form = "none"
    strip_controls: bool = False
    min_characters: int = 0
    max_characters: int = 0
    drop_duplicates: bool = False

    def __post_init__(self) -> None:
        if self.normalize not in FORMS:
            raise ValueError(f"--normalize {self.normalize}: unknown form: take one of {', '.join(FORMS)}")
        if self.min_characters < 0 or self.max_characters < 0:
            raise ValueError("--min-characters, --max-characters: must not be negative: leave them out for no limit")
        if self.max_characters and self.max_characters < self.min_characters:
            rule = f"is below --min-characters {self.min_characters}"
            raise ValueError(f"--max-characters {self.max_characters}: {rule}, nothing would be left: raise it")

    def describe(self) -> str:
        """Return the rules that are on, in words, for the manifest."""
        chosen = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.normalize != "none":
            chosen["normalize"] += f" (Unicode {unicodedata.unidata_version})"
        words = [name if value is True else f"{name} {value}" for name, value in chosen.items() if value]
        return ", ".join(word for word in words if word != "normalize none") or "none"


@dataclass(frozen=True)
class Cleaned:
    """The text as it goes on; why it does not, or ""; and the names of the rules that changed it."""

    text: str
    reject: str
    changes: tuple[str, ...]


def clean_text(text: str, rules: CleaningRules) -> Cleaned:
    """Apply the rules in the order in which CleaningRules lists them."""
    changes = []
    if rules.normalize != "none" and not unicodedata.is_normalized(rules.normalize, text):
        text = unicodedata.normalize(rules.normalize, text)
        changes.append(f"normalized to {rules.normalize}")
    if rules.strip_controls:
        stripped = text.translate(_CONTROLS).strip()
        if stripped != text.strip():
            changes.append("control characters replaced")
        text = stripped
    reject = ""
    if len(text) < rules.min_characters:
        reject = "too short"
    elif rules.max_characters and len(text) > rules.max_characters:
        reject = "too long"
    return Cleaned(text, reject, tuple(changes))
