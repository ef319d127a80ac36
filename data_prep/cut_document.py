"""Cuts a document that is too long to be one, such as a book, into several at line ends.

A corpus of a few long documents has little to draw a validation split from: each falls on one side as a whole.

Used by: read_unit.py. Tested by: tests/data_prep/test_cut_document.py.
Not here: the chunks that a document is encoded in (encode_text.py), which stay one document.
"""


def cut_document(text: str, max_characters: int) -> list[str]:
    """Return the pieces of text, each as many whole lines as max_characters hold; 0 leaves the text as it is.

    A line that is longer by itself is a piece. Lines of nothing but white space are dropped where they begin or end
    a piece.
    """
    if not max_characters or len(text) <= max_characters:
        return [text]
    pieces: list[str] = []
    lines: list[str] = []
    num_characters = 0
    for line in text.split("\n"):
        if lines and num_characters + len(line) > max_characters:
            pieces.append("\n".join(lines).strip())
            lines, num_characters = [], 0
        lines.append(line)
        num_characters += len(line) + 1
    pieces.append("\n".join(lines).strip())
    return [piece for piece in pieces if piece]
