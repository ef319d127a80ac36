"""Entities of tags, and their scores, are those of seqeval 1.2.2: IOB1, IOB2, and what no scheme allows.

What it gave is stored, as it cannot be a dependency (setup.py).
"""

import hashlib
import json
import random

import pytest

from disentangled.finetune.entity_scores import find_entities, score_entities

TAGS = ("O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC", "I-ORG")


def draw_sentences(seed: int) -> list[list[str]]:
    draw = random.Random(seed)
    return [draw.choices(TAGS, k=draw.randint(1, 12)) for _ in range(300)]


def test_entities_are_those_of_seqeval() -> None:
    """The hash is of seqeval.metrics.sequence_labeling.get_entities' (kind, first, last + 1) of each sentence."""
    found = [find_entities(tags) for tags in draw_sentences(1)]
    assert sum(map(len, found)) == 1209
    digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
    assert digest == "811bd5556e221392a3dc3549c554b55ea381482d66d53ed3d56db20f500c1b25"


def test_scores_equal_seqeval_to_the_last_digit() -> None:
    gold = draw_sentences(2)
    draw = random.Random(3)
    predicted = [[tag if draw.random() < 0.8 else draw.choice(TAGS[:4]) for tag in tags] for tags in gold]
    assert score_entities(gold, predicted) == {
        "f1": pytest.approx(0.8036410923276983, rel=1e-15),
        "precision": 0.8232682060390764,
        "recall": 0.7849280270956817,
    }


def test_nothing_found_scores_zero() -> None:
    assert score_entities([["B-PER"]], [["O"]]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize("tag", ["PER", "S-PER", "B-", "-PER", "B"])
def test_other_schemes_are_refused(tag: str) -> None:
    with pytest.raises(ValueError, match="is not IOB"):
        find_entities(["O", tag])
