"""transformers' TrainingArguments from FinetuneOptions: the share of each process, precision, what is written when.

Used by: run_task.py. Tested by tests/finetune/test_training_arguments.py.
Not here: DeepSpeed's JSON (ds_config.py).
"""

import os
from typing import Any

import torch
from transformers import TrainingArguments

from disentangled.finetune.ds_config import find_precision, load_ds_config
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.run_folder import CHECKPOINTS

# lines of loss over a run
NUM_LOG_LINES = 20


def make_arguments(options: FinetuneOptions, selection: str, num_updates: int) -> TrainingArguments:
    """The Trainer's arguments; `selection` is the metric that picks the best epoch.

    Raises:
        ValueError: a batch that cannot be divided among the processes.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    micro, accumulation = divide_batch(options, processes)
    deepspeed, precision = None, options.precision
    if options.ds_config is not None:
        deepspeed, precision = read_engine(options, processes)
    every = options.evaluate_every_steps
    interval: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch"}
    if every is not None:
        interval = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": every, "save_steps": every}
    return TrainingArguments(
        output_dir=str(options.output / CHECKPOINTS),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=max(micro, 8),
        gradient_accumulation_steps=accumulation,
        learning_rate=options.learning_rate,
        warmup_steps=options.warmup_steps,
        num_train_epochs=options.epochs,
        max_steps=options.max_steps or -1,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        weight_decay=options.weight_decay,
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_epsilon=options.adam_epsilon,
        max_grad_norm=options.gradient_clipping,
        seed=options.seed,
        bf16=precision == "bf16",
        fp16=precision == "fp16",
        use_cpu=not torch.accelerator.is_available(),
        deepspeed=deepspeed,
        **interval,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{selection}",
        greater_is_better=True,
        logging_steps=max(1, num_updates // NUM_LOG_LINES),
        disable_tqdm=True,
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )


def read_engine(options: FinetuneOptions, processes: int) -> tuple[dict[str, Any], str]:
    """(DeepSpeed's JSON, its precision).

    Raises:
        ValueError: no launcher, or `precision` says something else than the JSON.
    """
    assert options.ds_config is not None
    if "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"ds_config {options.ds_config}: DeepSpeed needs its launcher: deepspeed --num_accelerators N --module "
            "disentangled.finetune ..."
        )
    config = load_ds_config(options.ds_config, processes)
    precision = find_precision(config) or "fp32"
    if options.precision not in ("fp32", precision):
        raise ValueError(f"precision is {options.precision!r}, and ds_config {options.ds_config} says {precision}")
    return config, precision


def divide_batch(options: FinetuneOptions, processes: int) -> tuple[int, int]:
    """(sequences that a process takes at a time, micro-batches of an update).

    Raises:
        ValueError: the batch has no such parts, or one process would be given several GPUs.
    """
    if processes == 1 and torch.cuda.device_count() > 1:
        raise ValueError(
            f"{torch.cuda.device_count()} GPUs are visible to one process: start one process a GPU with the deepspeed "
            "launcher, or name one with CUDA_VISIBLE_DEVICES"
        )
    share, rest = divmod(options.batch_size, processes)
    if rest:
        raise ValueError(f"batch_size is {options.batch_size}: it must be a multiple of the {processes} processes")
    micro = options.micro_batch_size or share
    accumulation, rest = divmod(share, micro)
    if rest or not accumulation:
        raise ValueError(f"micro_batch_size is {micro}: it must divide a process's share of the batch, {share}")
    return micro, accumulation
