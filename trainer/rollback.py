"""Going back to a checkpoint after refused updates, and passing their samples over.

Used by: trainer/loop.py. Tested by tests/integration/test_faults.py.
Not here: which updates are refused (update_guard.py, outcomes.py) and how many are too many (faults.py).
"""

from disentangled.trainer.checkpoint import find_checkpoint, load_state
from disentangled.trainer.saving import finish_save, load_engines
from disentangled.trainer.skipped_samples import Skip, write_skips
from disentangled.trainer.training import Training


def roll_back(training: Training) -> None:
    """Go back to the newest checkpoint; from now on the samples of the refused updates are passed over.

    Those in a row may have ended a step ago, as outcomes are known late: that step is forgotten.

    Raises:
        FaultError: there is no checkpoint, or the run went back too often.
    """
    if training.writer.pending_step is not None:
        finish_save(training)
    refusals, ranks = training.refusals, training.ranks
    checkpoint, _ = ranks.copy_from_first(find_checkpoint(training.run_dir) if ranks.is_first else None)
    checkpoint = refusals.checkpoint_to_go_back_to(len(training.skips), checkpoint)
    first, stop = (training.samples_before(refusals.first_step + done) for done in (0, refusals.in_row))
    windows = training.loader.windows(first, stop)
    training.skips.append(Skip(refusals.first_step, stop - first, windows))
    if ranks.is_first:
        write_skips(training.run_dir, training.skips)
    state = load_state(checkpoint)
    training.tell(
        "rollback",
        f"{refusals.in_row} updates in a row were refused: back to step {state.step}, later passing over the "
        f"{stop - first} samples from {first} on",
        to_step=state.step,
        first_sample=first,
        num_samples=stop - first,
    )
    load_engines(checkpoint, state, training.engines)
    refusals.in_row = 0
    training.outcomes.clear()
    training.step = training.saved_step = state.step
    training.sums.clear()
    if ranks.is_first and training.log is not None and training.open_log is not None:
        training.sums.restore(state.sums)
        training.log.close()
        training.log = training.open_log(state.step)
