"""When and what the loop saves, and putting a checkpoint back into the engines.

What: a checkpoint at the interval is begun and written while training goes on; one at the end, or because the run is
stopped, is waited for. A periodic one that fails costs a warning, the last one ends the run with an error.
Used by: trainer/loop.py, rollback.py, train.py. Tested by tests/trainer/test_loop.py and tests/integration/.
Not here: the files (checkpoint.py, checkpoint_writer.py).
"""

import sys
from pathlib import Path

from disentangled.trainer.checkpoint import MODELS, TrainerState
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.engine_state import put_state, take_record
from disentangled.trainer.model_files import ModelFiles
from disentangled.trainer.outcomes import note_outcomes
from disentangled.trainer.run_config import to_dict
from disentangled.trainer.training import Training


class SaveError(OSError):
    """The last checkpoint could not be written. One line; every rank raises the same."""


def save_beside(training: Training) -> None:
    """Begin a checkpoint of this moment; it is written while training goes on, where the config says so."""
    if training.writer.pending_step is not None:
        finish_save(training)
    if training.saved_step == training.step:
        return
    try:
        begin_save(training)
    except OSError as error:
        tell_unsaved(training, training.step, error)
        return
    if not training.config.checkpoint.in_background:
        finish_save(training)


def save_now(training: Training) -> None:
    """Have a checkpoint of this moment on disk.

    Raises:
        SaveError: it could not be written; the newest one before is there still.
    """
    if training.writer.pending_step is not None:
        finish_save(training)
    if training.saved_step == training.step:
        return
    try:
        begin_save(training)
        training.writer.finish()
    except OSError as error:
        training.tell("unsaved", f"the last checkpoint could not be written: {error}")
        raise SaveError(
            f"step {training.step} could not be saved: {error}; free some space and run the same command again, which "
            f"goes on from step {training.saved_step or 0}"
        ) from error
    training.saved_step = training.step
    training.tell("save", f"saved step {training.step}")


def begin_save(training: Training) -> None:
    """Copy the state and start writing it."""
    training.watchdog.progress()
    note_outcomes(training)
    engines = training.engines
    state = TrainerState(
        step=training.step,
        consumed_samples=training.consumed_samples,
        dataset_id=training.dataset_id,
        world_size=training.ranks.world_size,
        engine=training.engine_name,
        sums=training.sums.total().tolist(),
        config=to_dict(training.config),
        models={name: take_record(getattr(engines, name).deepspeed) for name in MODELS},
        norms={name: getattr(engines, name).guard.norms for name in MODELS},
    )
    training.writer.begin(engines, state)


def finish_save(training: Training) -> None:
    """Make the pending checkpoint whole; where it cannot be, say so and go on: the ones before it are there."""
    step = training.writer.pending_step
    assert step is not None, "begin a checkpoint before"
    training.watchdog.progress()
    try:
        training.writer.finish()
    except OSError as error:
        tell_unsaved(training, step, error)
        return
    training.saved_step = step
    training.tell("save", f"saved step {step}")


def tell_unsaved(training: Training, step: int, error: OSError) -> None:
    """Warn that the checkpoint of a step was not written."""
    newest = "there is none yet" if training.saved_step is None else f"the newest one is of step {training.saved_step}"
    text = f"the checkpoint of step {step} could not be written ({error}): training goes on, {newest}"
    training.tell("unsaved", text)
    if training.ranks.is_first:
        print(f"warning: {text}", file=sys.stderr, flush=True)


def load_engines(checkpoint: Path, state: TrainerState, engines: EnginePair) -> None:
    """Weights, moments, counters, loss scales and norm means of both engines; called by every rank."""
    for name in MODELS:
        engine = getattr(engines, name)
        put_state(engine.deepspeed, state.models[name], ModelFiles(checkpoint / name))
        engine.guard.norms = state.norms[name]
