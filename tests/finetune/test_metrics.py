"""Metrics of stored predictions are those of scikit-learn, scipy and torchmetrics."""

import random

import pytest
import torch
import torchmetrics.functional as torchmetrics
from scipy import stats
from sklearn import metrics as sklearn

from disentangled.finetune.metrics import LABEL_METRICS, SCORE_METRICS, score_labels, score_numbers
from disentangled.finetune.sequences import Sequences

DRAW = random.Random(3)
GOLD = [DRAW.choice("01") for _ in range(1000)]
PREDICTED = [label if DRAW.random() < 0.8 else DRAW.choice("01") for label in GOLD]
SCORES = [DRAW.uniform(0, 5) for _ in range(1000)]
GUESSES = [score + DRAW.gauss(0, 2) for score in SCORES]


def test_label_metrics_equal_scikit_learn_to_the_last_digit() -> None:
    rows = [{"label": gold, "prediction": guess} for gold, guess in zip(GOLD, PREDICTED, strict=True)]
    assert Sequences(("0", "1"), LABEL_METRICS).score(rows) == {
        "accuracy": sklearn.accuracy_score(GOLD, PREDICTED),
        "matthews": sklearn.matthews_corrcoef(GOLD, PREDICTED),
        "f1": sklearn.f1_score(GOLD, PREDICTED, pos_label="1"),
        "macro_f1": sklearn.f1_score(GOLD, PREDICTED, average="macro"),
    }


def test_label_metrics_agree_with_torchmetrics() -> None:
    gold, predicted = (torch.tensor([int(label) for label in labels]) for labels in (GOLD, PREDICTED))
    scores = score_labels(LABEL_METRICS, GOLD, PREDICTED, "1")
    theirs = {
        "accuracy": torchmetrics.accuracy(predicted, gold, task="binary"),
        "matthews": torchmetrics.matthews_corrcoef(predicted, gold, task="binary"),
        "f1": torchmetrics.f1_score(predicted, gold, task="binary"),
    }
    for name, value in theirs.items():
        # torchmetrics computes in float32
        assert scores[name] == pytest.approx(float(value), abs=4 * torch.finfo(torch.float32).eps)


def test_score_metrics_equal_scipy_to_the_last_digit() -> None:
    pearson, spearman = stats.pearsonr(SCORES, GUESSES)[0], stats.spearmanr(SCORES, GUESSES)[0]
    rows = [{"label": gold, "prediction": guess} for gold, guess in zip(SCORES, GUESSES, strict=True)]
    expected = {"pearson": pearson, "spearman": spearman, "correlation": (pearson + spearman) / 2}
    assert Sequences((), SCORE_METRICS).score(rows) == expected


def test_correlation_with_a_constant_is_zero() -> None:
    assert score_numbers(SCORE_METRICS, [1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == dict.fromkeys(SCORE_METRICS, 0.0)


def test_f1_is_of_the_last_label() -> None:
    assert score_labels(("f1",), ["0", "0", "1"], ["0", "0", "0"], "1") == {"f1": 0.0}
