"""transformers' Trainer, with what a task needs beside it: learning rates by layer, an adversarial loss, short lines.

Used by: run_task.py. Tested by tests/finetune/test_overfit.py.
Not here: the groups (optimizer_groups.py), the perturbation (sift.py), what a run is (run_task.py).
"""

from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from disentangled.finetune.command_line import say


class ProgressLines(TrainerCallback):
    """A line for each evaluation and each logged loss."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Say the loss; evaluations come by `on_evaluate`."""
        if logs and "loss" in logs:
            step = f"step {state.global_step}/{state.max_steps}"
            say(f"{step}  loss {float(logs['loss']):.4f}  learning rate {float(logs['learning_rate']):.3g}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **others: Any,
    ) -> None:
        """Say what the development set says."""
        aside = ("runtime", "per_second", "epoch", "time")
        told = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        shown = [f"{name} {value:.4f}" for name, value in told.items() if not any(part in name for part in aside)]
        say(f"step {state.global_step}/{state.max_steps}  development set: {'  '.join(shown)}")


class TaskTrainer(Trainer):
    """A Trainer whose optimizer may have learning rates by layer."""
