"""Whether the discriminator is learning, in words.

What: a discriminator that calls everything original is right on nine tokens of ten, and its loss looks ordinary. What
gives it away is that it ranks replaced tokens no higher than original ones (AUC near 0.5) and finds none of them
(balanced accuracy near 0.5), though warm-up is over.
Used by: trainer/report.py. Tested by tests/trainer/test_verdict.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LINES = 10  # of the log that are judged together
NEAR_GUESSING = 0.55  # AUC and balanced accuracy: the tiny recipe at too high a rate stays at 0.54 (docs/log.md)
LEARNT = 0.6  # an AUC that a working discriminator passes early and does not lose again
LEAST_REPLACED = 0.01  # of live tokens: with fewer there is little to find
WARM_UPS = 8  # so many times its warm-up a run may take to begin learning: the tiny recipe takes five


@dataclass(frozen=True)
class Verdict:
    """kind: `early`, `broken`, `collapsed`, `good` or `weak`; text: a sentence or two."""

    kind: str
    text: str


def judge_discriminator(rows: Sequence[dict[str, float]], warmup_steps: int) -> Verdict:
    """Judge by the last lines of training. rows: at least one, with the keys that trainer/metrics.py gives."""
    rows = [row for row in rows if "rtd_loss" in row]
    if not rows:
        return Verdict("early", "The generator trains alone so far: there is no discriminator to judge.")
    last = rows[-LINES:]
    step = int(last[-1]["step"])
    losses = [row[name] for row in last for name in ("mlm_loss", "rtd_loss")]
    if not all(map(math.isfinite, losses)):
        return Verdict("broken", f"A loss is not finite at step {step:,}: what follows from here on is worth nothing.")
    auc, balanced, replaced = (
        sum(row.get(name, 0.5) for row in last) / len(last)
        for name in ("rtd_auc", "rtd_balanced_accuracy", "replaced_fraction")
    )
    numbers = f"AUC {auc:.3f}, balanced accuracy {balanced:.3f} (guessing: 0.5 and 0.5)"
    if step <= warmup_steps:
        return Verdict("early", f"Warm-up lasts until step {warmup_steps:,}: too early to judge. {numbers}.")
    if auc < NEAR_GUESSING and balanced < NEAR_GUESSING:
        # during warm-up the replacements of an untrained generator are found easily: that says nothing
        best = max((row for row in rows if row["step"] > warmup_steps), key=lambda row: row.get("rtd_auc", 0.5))
        if best.get("rtd_auc", 0.5) >= LEARNT:
            text = f"It had reached an AUC of {best['rtd_auc']:.3f} at step {int(best['step']):,} and lost it."
        elif step <= WARM_UPS * warmup_steps:
            until = f"Most runs begin to learn before step {WARM_UPS * warmup_steps:,}."
            return Verdict("early", f"The discriminator has not begun to find replaced tokens: {numbers}. {until}")
        else:
            remedy = "try a lower optimizer.discriminator_learning_rate or a smaller generator"
            text = f"Since warm-up it never was better: {remedy}."
        return Verdict("collapsed", f"The discriminator has collapsed: it tells nothing apart, {numbers}. {text}")
    if replaced < LEAST_REPLACED:
        few = f"only {replaced:.2%} of the tokens are replaced"
        return Verdict("weak", f"The discriminator has little to find: {few}. {numbers}.")
    if auc >= LEARNT:
        return Verdict("good", f"The discriminator finds replaced tokens: {numbers}.")
    return Verdict("weak", f"The discriminator finds little more than by guessing: {numbers}.")
