"""Exact match and F1 of answers, normalized as SQuAD's official evaluation does.

An answer is lower-cased, punctuation (ASCII's) and the articles a, an, the are taken out, white space becomes single
spaces. F1 is of the multisets of words; a question's score is the best over its gold answers; a question without an
answer is right with the empty answer alone (SQuAD 1.1: arXiv 1606.05250; 2.0: arXiv 1806.03822).
Used by: spans.py. Tested by tests/finetune/test_answer_scores.py.
Not here: finding answers (spans.py).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """The words that are compared, between single spaces."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(gold: str, predicted: str) -> float:
    """1 where both normalize to the same text, else 0."""
    return float(normalize_answer(gold) == normalize_answer(predicted))


def word_f1(gold: str, predicted: str) -> float:
    """F1 of the words; where one of both has none, 1 if the other has none too."""
    gold_words, predicted_words = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not gold_words or not predicted_words:
        return float(gold_words == predicted_words)
    shared = sum((Counter(gold_words) & Counter(predicted_words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(predicted_words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def score_answers(gold: Sequence[Sequence[str]], predicted: Sequence[str]) -> dict[str, float]:
    """f1 and exact_match over all questions, as fractions.

    Args:
        gold: each question's answers. As in the official evaluation those that normalize to nothing do not count, and
            a question left with none is one without an answer.
        predicted: an answer a question, "" for none.
    """
    f1 = match = 0.0
    for answers, answer in zip(gold, predicted, strict=True):
        counted = [text for text in answers if normalize_answer(text)] or [""]
        f1 += max(word_f1(text, answer) for text in counted)
        match += max(exact_match(text, answer) for text in counted)
    return {"f1": f1 / len(gold), "exact_match": match / len(gold)}
