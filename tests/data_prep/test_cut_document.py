"""cut_document.py: whole lines, nothing lost, nothing longer than a line forces it to be."""

import random

from disentangled.data_prep.cut_document import cut_document


def test_short_text_and_no_limit_leave_the_text_alone():
    assert cut_document("a\nb\n", 4) == ["a\nb\n"]
    assert cut_document("a\nb" * 100, 0) == ["a\nb" * 100]


def test_pieces_are_as_many_lines_as_fit():
    assert cut_document("aa\nbb\ncc\ndd\ne", 5) == ["aa\nbb", "cc\ndd", "e"]
    assert cut_document("aa\nlonger line\nb\nc", 4) == ["aa", "longer line", "b\nc"]
    assert cut_document("aa\n\n  \nbb", 4) == ["aa", "bb"]


def test_lines_come_back_in_order_whatever_the_limit():
    draw = random.Random(0)
    lines = ["".join(draw.choices("abc ", k=draw.randint(1, 40))).strip() or "x" for _ in range(300)]
    for limit in (1, 7, 39, 40, 41, 200, 5000):
        pieces = cut_document("\n".join(lines), limit)
        assert [line for piece in pieces for line in piece.split("\n")] == lines
        assert all(len(piece) <= limit or "\n" not in piece for piece in pieces)
