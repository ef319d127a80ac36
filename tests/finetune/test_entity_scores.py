"""Entities of tags, and their scores, are those of seqeval: IOB1, IOB2, and what no scheme allows."""

import random

import pytest
import seqeval.metrics as seqeval
from seqeval.metrics.sequence_labeling import get_entities

from disentangled.finetune.entity_scores import find_entities, score_entities

TAGS = ("O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG")


def draw_sentences(seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(TAGS, k=draw.randint(1, 12)) for _ in range(300)]


def test_entities_are_those_of_seqeval() -> None:
    for tags in draw_sentences(1):
        theirs = [(kind, first, last + 1) for kind, first, last in get_entities(tags)]
        assert find_entities(tags) == theirs


def test_scores_equal_seqeval_to_the_last_digit() -> None:
    gold = draw_sentences(2)
    draw = random.Random(3)
    predicted = [[tag if draw.random() < 0.8 else draw.choice(TAGS) for tag in tags] for tags in gold]
    assert score_entities(gold, predicted) == {
        "f1": pytest.approx(seqeval.f1_score(gold, predicted), rel=1e-15),
        "precision": seqeval.precision_score(gold, predicted),
        "recall": seqeval.recall_score(gold, predicted),
    }


def test_nothing_found_scores_zero() -> None:
    assert score_entities([["B-PER"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize("tag", ["PER", "S-PER", "B-", "-PER", "B"])
def test_other_schemes_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is not IOB"):
        find_entities(["O", tag])
