"""Precision, recall and F1 of whole entities in IOB tags, as CoNLL's evaluation counts them.

`B-X` begins an entity of kind X; `I-X` goes on with one of the same kind, and begins one where there is none (so IOB1,
as CoNLL-2003's own files have it, reads as IOB2 does); `O` is outside. An entity is right if kind and both ends are.
Used by: tags.py. Tested by tests/finetune/test_entity_scores.py, against stored results of seqeval.
Not here: other schemes (IOBES), tags to words (tags.py).
"""

from collections.abc import Sequence

Entity = tuple[str, int, int]  # kind, first word, word after the last


def find_entities(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence, in order.

    Raises:
        ValueError: a tag that is neither `O` nor `B-` or `I-` with a kind.
    """
    entities: list[Entity] = []
    kind, start = "", 0
    for index, tag in enumerate([*tags, "O"]):
        prefix, _, tagged = tag.partition("-")
        if tag != "O" and (prefix not in ("B", "I") or not tagged):
            raise ValueError(f"tag {tag!r} is not IOB: use O, B-KIND and I-KIND")
        goes_on = prefix == "I" and tagged == kind
        if kind and not goes_on:
            entities.append((kind, start, index))
        if not goes_on:
            kind, start = tagged, index
    return entities


def score_entities(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """f1, precision and recall over all sentences' entities; 0 where there are none."""
    right = num_gold = num_predicted = 0
    for gold_tags, predicted_tags in zip(gold, predicted, strict=True):
        real, found = set(find_entities(gold_tags)), set(find_entities(predicted_tags))
        right, num_gold, num_predicted = right + len(real & found), num_gold + len(real), num_predicted + len(found)
    precision = right / num_predicted if num_predicted else 0.0
    recall = right / num_gold if num_gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
