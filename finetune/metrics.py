"""Metrics of labels and scores, by name, from scikit-learn and scipy.

`accuracy`, `matthews` (correlation coefficient of two label lists), `f1` (of the last label, which is "1" in GLUE),
`macro_f1`, `pearson`, `spearman`, and `correlation`, the mean of the last two, which is GLUE's number for STS-B.
All are fractions. A correlation with a constant is undefined; it is reported as 0, as scikit-learn does for Matthews.
Used by: sequences.py, choices.py. Tested by tests/finetune/test_metrics.py.
Not here: answers (answer_scores.py), entities (entity_scores.py).
"""

from collections.abc import Sequence

from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

LABEL_METRICS = ("accuracy", "matthews", "f1", "macro_f1")
SCORE_METRICS = ("correlation", "pearson", "spearman")


def score_labels(names: Sequence[str], gold: Sequence[str], predicted: Sequence[str], last: str) -> dict[str, float]:
    """The named metrics of predicted labels; `last` is the label whose F1 is `f1`."""
    scores = {
        "accuracy": lambda: accuracy_score(gold, predicted),
        "matthews": lambda: matthews_corrcoef(gold, predicted),
        "f1": lambda: f1_score(gold, predicted, labels=[last], average="macro", zero_division=0.0),
        "macro_f1": lambda: f1_score(gold, predicted, average="macro", zero_division=0.0),
    }
    return {name: float(scores[name]()) for name in names}


def score_numbers(names: Sequence[str], gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """The named correlations of predicted numbers."""
    if len(set(gold)) < 2 or len(set(predicted)) < 2:
        return dict.fromkeys(names, 0.0)
    pearson, spearman = float(pearsonr(gold, predicted)[0]), float(spearmanr(gold, predicted)[0])
    scores = {"pearson": pearson, "spearman": spearman, "correlation": (pearson + spearman) / 2}
    return {name: scores[name] for name in names}
