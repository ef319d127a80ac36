"""Exact match and F1 of answers: torchmetrics' numbers on stored predictions, and the official rules one by one."""

import random

import pytest
import torch
from torchmetrics.functional.text import squad

from disentangled.finetune.answer_scores import normalize_answer, score_answers

WORDS = ("The", "an", "oil-crisis", "began", "in", "1973,", "OAPEC", "a.b", "Theory", "caf\u00e9")


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The  Oil Crisis!", "oil crisis"),
        ("an a the", ""),
        ("theatre and Anna", "theatre and anna"),
        ("U.S. $12", "us 12"),
        ("a-the", "athe"),
        ("\u201cquoted\u201d", "\u201cquoted\u201d"),
    ],
)
def test_answers_are_normalized_as_officially(text: str, normalized: str) -> None:
    assert normalize_answer(text) == normalized


def test_scores_agree_with_torchmetrics_on_stored_predictions() -> None:
    draw = random.Random(5)
    gold = [
        [" ".join(draw.choices(WORDS[2:], k=draw.randint(1, 4))) for _ in range(draw.randint(1, 3))] for _ in range(300)
    ]
    predicted = [
        draw.choice([draw.choice(answers), answers[0].replace(",", "").upper(), " ".join(draw.choices(WORDS, k=3))])
        for answers in gold
    ]
    theirs = squad(
        [{"prediction_text": text, "id": f"{number}"} for number, text in enumerate(predicted)],
        [
            {"answers": {"text": answers, "answer_start": [0] * len(answers)}, "id": f"{number}"}
            for number, answers in enumerate(gold)
        ],
    )
    ours = score_answers(gold, predicted)
    # torchmetrics adds 300 numbers of up to 1 in float32, and gives percent
    rounding = 300 * torch.finfo(torch.float32).eps
    assert 100 * ours["f1"] == pytest.approx(float(theirs["f1"]), rel=rounding)
    assert 100 * ours["exact_match"] == pytest.approx(float(theirs["exact_match"]), rel=rounding)
    assert 0.1 < ours["exact_match"] < ours["f1"] < 0.95


def test_questions_without_answer_are_right_with_none_alone() -> None:
    assert score_answers([[], ["The"]], ["", ""]) == {"f1": 1.0, "exact_match": 1.0}
    assert score_answers([[], ["oil"]], ["oil", ""]) == {"f1": 0.0, "exact_match": 0.0}
