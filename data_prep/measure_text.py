"""Measures of a text that ask for no language: shares of letters, digits and repeated lines, the longest run.

Letters are Unicode's categories L and M (marks belong to the letters of Indic scripts, Thai and Arabic), digits are Nd.
Shares are of the characters that are no white space; 0 where there are none.

Used by: clean.py. Tested by: tests/data_prep/test_measure_text.py.
Not here: mean word length, stop words and the like, which say something about some languages only.
"""

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

_LETTER, _DIGIT, _SPACE, _OTHER = range(4)
_NUM_CODE_POINTS = 0x110000


def letter_share(text: str) -> float:
    """Return the share of letters."""
    return _share(text, _LETTER)


def digit_share(text: str) -> float:
    """Return the share of digits."""
    return _share(text, _DIGIT)


def repeated_line_share(text: str) -> float:
    """Return the share of characters that lie in lines which an earlier line equals, white space around them aside."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    total = sum(map(len, lines))
    return 1 - sum(map(len, set(lines))) / total if total else 0.0


def longest_run(text: str) -> int:
    """Return the length of the longest run of one character other than white space."""
    codes = _code_points(text)
    if not len(codes):
        return 0
    # where runs begin, and the end
    borders = np.flatnonzero(np.concatenate(([True], codes[1:] != codes[:-1], [True])))
    is_shown = _classes()[codes[borders[:-1]]] != _SPACE
    return int(np.max(np.diff(borders)[is_shown], initial=0))


def _share(text: str, kind: int) -> float:
    counts = np.bincount(_classes()[_code_points(text)], minlength=4)
    return float(counts[kind] / max(counts.sum() - counts[_SPACE], 1))


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


@functools.cache
def _classes() -> npt.NDArray[np.uint8]:
    """Return the class of every code point; a table, as looking each character up takes a hundred times as long."""
    table = np.full(_NUM_CODE_POINTS, _OTHER, dtype=np.uint8)
    for code in range(_NUM_CODE_POINTS):
        category = unicodedata.category(chr(code))
        if category[0] in "LM":
            table[code] = _LETTER
        elif category == "Nd":
            table[code] = _DIGIT
        elif chr(code).isspace():
            table[code] = _SPACE
    return table
