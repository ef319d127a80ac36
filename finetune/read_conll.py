"""Sentences in columns: a word a line, its tag in the last column, an empty line between sentences.

Columns are separated by tabs, or by spaces where a line has no tab; what is between first and last is passed over.
`-DOCSTART-` lines (CoNLL-2003) belong to no sentence. WikiANN and CoNLL-2003 are written like this.
Used by: read_task.py. Tested by tests/finetune/test_tags.py.
Not here: what tags mean (entity_scores.py), encoding (tags.py).
"""

from pathlib import Path

from datasets import Dataset

from disentangled.finetune.read_rows import read_lines

DOCUMENT_START = "-DOCSTART-"


def read_conll(path: Path) -> Dataset:
    """Columns: words (list of str), label (list of str, a tag a word), place (of the first word).

    Raises:
        ValueError: a line of one column, a word without a tag.
    """
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    places = [""]
    for place, line in read_lines(path):
        if not line.strip() or line.startswith(DOCUMENT_START):
            if words[-1]:
                words.append([])
                tags.append([])
                places.append("")
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        if len(fields) < 2 or not fields[0].strip() or not fields[-1].strip():
            raise ValueError(f"{place}: {line!r} is no word and tag in columns: separate them by a tab or a space")
        words[-1].append(fields[0])
        tags[-1].append(fields[-1].strip())
        places[-1] = places[-1] or place
    whole = sum(map(bool, words))
    return Dataset.from_dict({"words": words[:whole], "label": tags[:whole], "place": places[:whole]})
