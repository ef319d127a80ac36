"""Changes a document's text, or rejects the document, by rules that look at it alone. All are off by default.

    split_documents  longer documents are cut at line ends first (cut_document.py)
    normalize        a Unicode normalization form
    strip_controls   control characters, but newline and tab, become spaces
    min_, max_characters   shorter and longer documents are rejected
    min_letters            documents of a smaller share of letters are rejected (measure_text.py has the measures)
    max_digits             of a larger share of digits
    max_repeated_lines     of a larger share of lines that they hold before already
    max_run                with a longer run of one character
    drop_duplicates, drop_near_duplicates   found out beforehand (find_duplicates.py, near_duplicates.py)

The tokenizer normalizes too (nmt_nfkc where it is trained here); what is done here also decides which documents are
copies of each other, on which side of the split they fall and what their length is.

Used by: read_unit.py. Tested by: tests/data_prep/test_clean.py.
Not here: text that cannot be read (read_text.py).
"""

import dataclasses
import unicodedata
from dataclasses import dataclass
from typing import Literal

from disentangled.data_prep.measure_text import digit_share, letter_share, longest_run, repeated_line_share
from disentangled.data_prep.sign_text import SIGNING

Form = Literal["none", "NFC", "NFD", "NFKC", "NFKD"]
FORMS: tuple[Form, ...] = ("none", "NFC", "NFD", "NFKC", "NFKD")
# what they do depends on Python's version of Unicode
_UNICODE_RULES = ("normalize", "min_letters", "max_digits", "max_run")
_CONTROLS = {code: " " for code in range(0xA0) if unicodedata.category(chr(code)) == "Cc" and chr(code) not in "\n\t"}
# of --drop-near-duplicates: the same text but for a few sentences
DEFAULT_SIMILARITY = 0.8


@dataclass(frozen=True)
class CleaningRules:
    """What to do with each document; the defaults do nothing, a limit of 0 is none but for the shares."""

    split_documents: int = 0
    normalize: Form = "none"
    strip_controls: bool = False
    min_characters: int = 0
    max_characters: int = 0
    min_letters: float = 0.0
    max_digits: float = 1.0
    max_repeated_lines: float = 1.0
    max_run: int = 0
    drop_duplicates: bool = False
    drop_near_duplicates: float = 0.0

    def __post_init__(self) -> None:
        if self.normalize not in FORMS:
            raise ValueError(f"--normalize {self.normalize}: unknown form: take one of {', '.join(FORMS)}")
        if self.split_documents < 0:
            raise ValueError(f"--split-documents {self.split_documents}: must not be negative: leave it out for none")
        if not 0.0 <= self.drop_near_duplicates <= 1.0:
            rule = "is a similarity and must lie between 0 and 1"
            raise ValueError(f"--drop-near-duplicates {self.drop_near_duplicates}: {rule}: try {DEFAULT_SIMILARITY}")
        if self.min_characters < 0 or self.max_characters < 0:
            raise ValueError("--min-characters, --max-characters: must not be negative: leave them out for no limit")
        if self.max_characters and self.max_characters < self.min_characters:
            rule = f"is below --min-characters {self.min_characters}"
            raise ValueError(f"--max-characters {self.max_characters}: {rule}, nothing would be left: raise it")
        for name in ("min_letters", "max_digits", "max_repeated_lines"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                option = f"--{name.replace('_', '-')} {getattr(self, name)}"
                raise ValueError(f"{option}: is a share and must lie between 0 and 1: leave it out for no limit")
        if self.max_run < 0:
            raise ValueError(f"--max-run {self.max_run}: must not be negative: leave it out for no limit")

    @property
    def finds_copies(self) -> bool:
        """Whether documents are left out because of others."""
        return self.drop_duplicates or self.drop_near_duplicates > 0.0

    def describe(self) -> str:
        """Return the rules that are on, in words, for the manifest."""
        fields = dataclasses.fields(self)
        chosen = {field.name: getattr(self, field.name) for field in fields}
        words = [
            f.name if chosen[f.name] is True else f"{f.name} {chosen[f.name]}"
            for f in fields
            if chosen[f.name] != f.default
        ]
        if any(chosen[f.name] != f.default for f in fields if f.name in _UNICODE_RULES):
            words.append(f"Unicode {unicodedata.unidata_version}")
        if self.drop_near_duplicates:
            words.append(SIGNING)
        return ", ".join(words) or "none"


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
    return Cleaned(text, _find_reject(text, rules), tuple(changes))


def _find_reject(text: str, rules: CleaningRules) -> str:
    """Return the first reason not to take the text, or ""."""
    if len(text) < rules.min_characters:
        return "too short"
    if rules.max_characters and len(text) > rules.max_characters:
        return "too long"
    if rules.min_letters > 0.0 and letter_share(text) < rules.min_letters:
        return "few letters"
    if rules.max_digits < 1.0 and digit_share(text) > rules.max_digits:
        return "many digits"
    if rules.max_repeated_lines < 1.0 and repeated_line_share(text) > rules.max_repeated_lines:
        return "repeated lines"
    if rules.max_run and longest_run(text) > rules.max_run:
        return "long run of a character"
    return ""
