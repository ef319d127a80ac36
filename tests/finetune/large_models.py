"""One rank of fine-tuning with ZeRO-3: deepspeed --module tests.finetune.large_models MODEL DATA ENGINE OUT.

What: loads the folder MODEL (`from_pretrained` cuts each parameter over the ranks as it is made), puts it on our
attention, trains NUM_STEPS with transformers' Trainer, and leaves in OUT the losses, the logits of all rows and the
whole model. `train_alone` does the same in one process in plain torch, on transformers' own code.
Used by: tests/finetune/test_large_models.py.
"""

import copy
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments, set_seed

import disentangled
from disentangled.trainer.ds_config import load_ds_config, merge_ds_config, precision_of
from tests.integration.ds_configs import cut_down

NUM_RANKS, ROWS_OF_RANK, NUM_STEPS = 2, 2, 3
LEARNING_RATE, WEIGHT_DECAY, BETAS, EPSILON = 2e-3, 0.01, (0.9, 0.999), 1e-8
# a shipped file, and whether without its half precision
ENGINES = {
    "zero3_fp32": ("zero3_bf16", True),
    "zero3_bf16": ("zero3_bf16", False),
    "zero3_offload_bf16": ("zero3_offload_bf16", False),
}
Batch = dict[str, Tensor]


class Rows(Dataset[Batch]):
    """The rows of a batch, one by one."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return len(self._batch["labels"])

    def __getitem__(self, row: int) -> Batch:
        return {name: values[row] for name, values in self._batch.items()}


class InOrder(Trainer):
    """A Trainer that takes the rows as they lie: step s has the rows from s * 4 on, two for each rank."""

    def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler[int]:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def engine_config(engine: str) -> dict[str, Any]:
    """The shipped file, with everything cut that ZeRO-3 can cut."""
    name, is_fp32 = ENGINES[engine]
    ds_config = cut_down(load_ds_config(name), NUM_RANKS)
    if is_fp32:
        del ds_config["bf16"]
    merged = merge_ds_config(ds_config, micro_sequences=ROWS_OF_RANK, accumulation=1, gradient_clipping=0.0)
    merged["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return merged


def train_on_ranks(folder: Path, data: Path, engine: str, output: Path) -> None:
    """What each rank calls."""
    # as trainer/distributed.py: this optional op needs a C++ compiler, for minutes
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    set_seed(1)
    ds_config = engine_config(engine)
    arguments = TrainingArguments(
        output_dir=str(output / "trainer"), deepspeed=ds_config, use_cpu=True, bf16=precision_of(ds_config) == "bf16",
        per_device_train_batch_size=ROWS_OF_RANK, per_device_eval_batch_size=8, max_steps=NUM_STEPS,
        learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=EPSILON, lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, save_strategy="no",
        report_to=[], optim="adamw_torch", disable_tqdm=True,
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert set(sizes.values()) == {0}, "from_pretrained has cut the parameters already"
    disentangled.accelerate(model)
    # their forward takes any keyword, which Trainer takes for a loss that is averaged over all ranks already
    model.accepts_loss_kwargs = False
    rows = Rows(torch.load(data))
    trainer = InOrder(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    logits = torch.as_tensor(trainer.predict(rows).predictions)
    trainer.save_model(str(output / "model"))
    if trainer.is_world_process_zero():
        torch.save({"losses": torch.tensor(losses), "logits": logits}, output / "found.pt")


def train_alone(model: nn.Module, batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """Losses and final logits of one process that takes all rows of a step; bf16 with fp32 weights and moments."""
    master = copy.deepcopy(model).to(torch.promote_types(dtype, torch.float32))
    model = copy.deepcopy(master).to(dtype)
    decays = [{"params": [], "weight_decay": WEIGHT_DECAY}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in master.named_parameters():
        decays[name.endswith("bias") or "LayerNorm" in name]["params"].append(parameter)  # type: ignore[attr-defined]
    optimizer = torch.optim.AdamW(decays, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON)
    losses = []
    rows = NUM_RANKS * ROWS_OF_RANK
    for step in range(NUM_STEPS):
        model.zero_grad()
        taken = {name: values[step * rows : (step + 1) * rows] for name, values in batch.items()}
        labels = taken.pop("labels")
        # the model's own loss is taken in float32, also of float64
        loss = F.cross_entropy(model(**taken).logits.to(torch.promote_types(dtype, torch.float32)), labels)
        loss.backward()
        for own, parameter in zip(master.parameters(), model.parameters(), strict=True):
            own.grad = None if parameter.grad is None else parameter.grad.to(own.dtype)
        optimizer.step()
        with torch.no_grad():
            for own, parameter in zip(master.parameters(), model.parameters(), strict=True):
                parameter.copy_(own)
        losses.append(loss.detach())
    return {"losses": torch.stack(losses), "logits": logits_of(model, batch)}


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Of all rows, without gradients."""
    model.eval()
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, data, engine, output = (word for word in sys.argv[1:] if not word.startswith("--"))
    train_on_ranks(Path(folder), Path(data), engine, Path(output))
