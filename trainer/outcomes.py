"""What became of each step's updates: read from the device a step later, so that it has more to do meanwhile.

Used by: trainer/loop.py, saving.py. Tested by tests/trainer/test_outcomes.py and tests/integration/test_faults.py.
Not here: which updates are refused (update_guard.py), how many are too many (faults.py).
"""

from disentangled.trainer.training import Training


def keep_outcome(training: Training) -> None:
    """After a step's updates, before it is counted: keep what was decided about them, unread."""
    training.outcomes.append((training.step, training.engines.take_decisions()))


def note_outcomes(training: Training, but_last: int = 0) -> None:
    """Count and tell the refused updates of all steps kept but the last ones, which the device may be at still."""
    while len(training.outcomes) > but_last:
        step, decisions = training.outcomes.popleft()
        noted = {name: getattr(training.engines, name).note(decision) for name, decision in decisions.items()}
        if training.refusals.is_too_many:
            continue  # the run goes back and does this step again
        refusals = {name: why for name, why in noted.items() if why}
        training.refusals.note(step, refusals)
        for name, why in refusals.items():
            text = f"the {name}'s update was skipped: {why}"
            training.tell("skipped_update", text, step, first_sample=training.samples_before(step))
