"""Which file owns a key: the recipe what a run computes, the ds_config how the engine runs it.

What: an unknown key is an error that names the nearest right one; a key in the wrong file is one that names the file.
Used by: trainer/run_config.py, trainer/ds_config.py. Tested by tests/trainer/test_run_config.py and test_ds_config.py.
"""

import difflib
from collections.abc import Collection

# DeepSpeed's name: the recipe's
RECIPE_OWNED = {
    "train_batch_size": "batch.global_sequences",
    "train_micro_batch_size_per_gpu": "batch.micro_sequences",
    "gradient_accumulation_steps": "batch.global_sequences and batch.micro_sequences",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "optimizer.*",
    "scheduler": "schedule.*",
    "steps_per_print": "log.every_steps",
    "tensorboard": "log.tensorboard",
    "wandb": "log.wandb",
    "activation_checkpointing": "machine.recompute_generator and machine.recompute_discriminator",
    "compile": "machine.compile_generator and machine.compile_discriminator",
}
ENGINE_OWNED = {
    "zero_optimization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "bf16",
    "fp16",
    "torch_autocast",
    "data_types",
    "communication_data_type",
    "prescale_gradients",
    "gradient_predivide_factor",
    "wall_clock_breakdown",
    "memory_breakdown",
    "dump_state",
    "comms_logger",
    "flops_profiler",
    "aio",
    "checkpoint",
    "seq_parallel_communication_data_type",
}


def check_known(key: str, known: Collection[str], place: str) -> None:
    """Raise ValueError naming the nearest key where `key` is not known."""
    if key in known:
        return
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    raise ValueError(f"{place} has an unknown key {key!r}: did you mean {(same_name or near)[0]!r}?")


def check_recipe_key(key: str, known: Collection[str], place: str) -> None:
    """Raise ValueError where `section.key` is no key of a recipe (`known`)."""
    section = key.split(".")[0]
    if section not in {other.split(".")[0] for other in known}:
        if section in RECIPE_OWNED:
            raise ValueError(f"{place} holds DeepSpeed's {key!r}: in a recipe it is {RECIPE_OWNED[section]}")
        if section in ENGINE_OWNED:
            raise ValueError(f"{place} holds {key!r}, which the ds_config owns: set it in the --engine file")
    check_known(key, known, place)


def check_engine_key(key: str, recipe_keys: Collection[str], place: str) -> None:
    """Raise ValueError where `key`, or `key.inner`, is no key of a ds_config. recipe_keys: all of a recipe."""
    name = key.split(".")[0]
    if name in RECIPE_OWNED:
        raise ValueError(f"{place} holds {key!r}, which the recipe owns: set {RECIPE_OWNED[name]} there")
    if key in recipe_keys:
        raise ValueError(f"{place} holds {key!r}, which the recipe owns: set it there")
    if name not in ENGINE_OWNED:
        same_name = sorted(other for other in recipe_keys if name in other.split("."))
        if same_name:
            raise ValueError(f"{place} holds {key!r}, which the recipe owns: set {same_name[0]} there")
        check_known(name, ENGINE_OWNED, place)
