"""transformers' Trainer, with what a task needs beside it: learning rates by layer, an adversarial loss, short lines.

Used by: run_task.py. Tested by tests/finetune/test_task_trainer.py, test_overfit.py.
Not here: the groups (optimizer_groups.py), the perturbation (sift.py), what a run is (run_task.py).
"""

from typing import Any

from torch import nn, optim
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from disentangled.finetune.command_line import say
from disentangled.finetune.optimizer_groups import layer_groups
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.sift import Perturbation, adversarial_divergence


class TaskTrainer(Trainer):
    """A Trainer whose learning rate may fall with the layer, and whose loss may have an adversarial term."""

    def __init__(self, options: FinetuneOptions, model: PreTrainedModel, **settings: Any) -> None:
        super().__init__(model=model, **settings)
        self.options, self.task_model = options, model
        # losses are means over a micro-batch: an update's is the mean over its micro-batches, for every head alike
        self.model_accepts_loss_kwargs = False
        self.perturbation = Perturbation().attach(model) if options.sift_weight else None

    def create_optimizer(self, *arguments: Any, **settings: Any) -> optim.Optimizer:
        """Trainer's own optimizer, on groups by layer where a decay is asked for."""
        if self.optimizer is None and self.options.layer_decay < 1:
            kind, parameters = self.get_optimizer_cls_and_kwargs(self.args, self.task_model)
            decayed = set(self.get_decay_parameter_names(self.task_model))
            groups = layer_groups(
                self.task_model, self.args.learning_rate, self.options.layer_decay, self.args.weight_decay, decayed
            )
            self.optimizer = kind(groups, **parameters)
        created: optim.Optimizer = super().create_optimizer(*arguments, **settings)
        return created

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The task's loss, in training with the adversarial term."""
        if self.perturbation is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, clean = super().compute_loss(model, inputs, True, num_items_in_batch)
        found = adversarial_divergence(
            model, inputs, clean, self.perturbation, step=self.options.sift_step, init=self.options.sift_init
        )
        loss = loss + self.options.sift_weight * found
        return (loss, clean) if return_outputs else loss


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
