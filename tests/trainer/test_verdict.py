import math
from collections.abc import Callable

import pytest

from disentangled.trainer.verdict import judge_discriminator


def make_rows(
    auc: Callable[[int], float], balanced: Callable[[int], float], last_step: int, **others: float
) -> list[dict[str, float]]:
    return [
        {"step": step, "mlm_loss": 4.0, "rtd_loss": 0.4, "replaced_fraction": 0.12, **others,
         "rtd_auc": auc(step), "rtd_balanced_accuracy": balanced(step)}
        for step in range(10, last_step + 1, 10)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("auc", "balanced", "last_step", "kind", "words"),
    [
        # guesses from the first step to the last
        (lambda step: 0.51, lambda step: 0.5, 2000, "collapsed", "Since warm-up it never was better"),
        # what it finds in the text of an untrained generator does not count
        (lambda step: 0.74 if step < 50 else 0.5, lambda step: 0.5, 500, "early", "has not begun"),
        # had learnt, and lost it
        (
            lambda step: 0.83 if step < 900 else 0.5,
            lambda step: 0.7 if step < 900 else 0.5,
            2000,
            "collapsed",
            "an AUC of 0.830 at step 110",
        ),
        # ranks well, but calls nearly all original: what the tiny recipe does at its end
        (lambda step: 0.65, lambda step: 0.52, 2000, "good", "finds replaced tokens: AUC 0.650"),
        (lambda step: 0.93, lambda step: 0.8, 2000, "good", "finds replaced tokens: AUC 0.930"),
        (lambda step: 0.57, lambda step: 0.5, 2000, "weak", "little more than by guessing"),
        (lambda step: 0.5, lambda step: 0.5, 100, "early", "Warm-up lasts until step 100"),
        (lambda step: 0.53, lambda step: 0.5, 500, "early", "has not begun"),
    ],
)
def test_verdict_says_what_the_numbers_mean(
    auc: Callable[[int], float], balanced: Callable[[int], float], last_step: int, kind: str, words: str
) -> None:
    verdict = judge_discriminator(make_rows(auc, balanced, last_step), warmup_steps=100)
    assert verdict.kind == kind
    assert words in verdict.text
    assert ("collapsed" in verdict.text) == (kind == "collapsed")


def test_one_odd_line_changes_nothing() -> None:
    rows = make_rows(lambda step: 0.5 if step == 2000 else 0.9, lambda step: 0.5 if step == 2000 else 0.8, 2000)
    assert judge_discriminator(rows, 100).kind == "good"


def test_few_replaced_tokens_are_said_so() -> None:
    verdict = judge_discriminator(make_rows(lambda step: 0.9, lambda step: 0.8, 2000, replaced_fraction=0.004), 100)
    assert verdict.kind == "weak" and "only 0.40% of the tokens are replaced" in verdict.text


def test_a_loss_that_is_no_number_comes_first() -> None:
    rows = make_rows(lambda step: 0.9, lambda step: 0.8, 2000)
    rows[-3]["rtd_loss"] = math.nan
    assert judge_discriminator(rows, 100).kind == "broken"


def test_generator_that_trains_alone_is_no_verdict() -> None:
    assert judge_discriminator([{"step": 100.0, "mlm_loss": 5.0}], warmup_steps=10).kind == "early"
