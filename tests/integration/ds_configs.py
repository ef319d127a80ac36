"""Every shipped ds_config trains a small pair: torchrun -m tests.integration.ds_configs SHARDS FILE.

What: for each file but those of fp16, four steps of both models, held-out losses, what made the host wait, the types of
what must be fp32, and what a loss that is no number does; written to FILE as JSON by the first rank.
Used by: tests/integration/test_ds_configs.py.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.distributed import Ranks, join_ranks, leave_ranks
from disentangled.trainer.ds_config import DS_CONFIGS, load_ds_config, precision_of
from disentangled.trainer.engine import EnginePair, ModelEngine, build_engines, build_models
from disentangled.trainer.engine_state import take_state
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import accumulation_steps
from tests.host_waits import HostWaits
from tests.integration.zero_stages import MAY_WAIT, NUM_STEPS, case_config, run_steps
from tests.trainer.tiny_run import Parts, build_parts

MICRO_SEQUENCES = 2
# as DeepSpeed's own names of dtypes
FP32, BF16 = "torch.float32", "torch.bfloat16"


def list_ds_configs() -> list[str]:
    """Names of the shipped files that a CPU runs."""
    names = sorted(path.stem for path in DS_CONFIGS.glob("*.json"))
    return [name for name in names if precision_of(load_ds_config(name)) != "fp16"]


def cut_down(ds_config: dict[str, Any], num_ranks: int) -> dict[str, Any]:
    """The same for few ranks and small parameters: nothing so small that it would not be cut."""
    zero = dict(ds_config["zero_optimization"])
    if "zero_hpz_partition_size" in zero:
        zero["zero_hpz_partition_size"] = num_ranks
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 0
    return ds_config | {"zero_optimization": zero}


def types_of(engine: ModelEngine) -> dict[str, list[str]]:
    """What the weights are computed in, and what the optimizer keeps, accumulates and sends."""
    state = engine.deepspeed.basic_optimizer.state
    moments = {str(values[name].dtype) for values in state.values() for name in ("exp_avg", "exp_avg_sq")}
    sent = {str(getattr(p, "comm_dtype", engine.deepspeed.communication_data_type)) for p in engine.module.parameters()}
    return {
        "weights": sorted({str(parameter.dtype) for parameter in engine.module.parameters()}),
        "master weights": sorted({str(parameter.dtype) for parameter in state}),
        "moments": sorted(moments),
        "accumulated": [str(engine.deepspeed.get_data_types()[1])],
        "sent": sorted(sent),
    }


def run_ds_config(name: str, shards: Path, ranks: Ranks) -> dict[str, Any]:
    """One file: losses and types."""
    parts = build_parts(case_config(shards, "gdes", "clipped", MICRO_SEQUENCES))
    accumulation = accumulation_steps(parts.config.batch, ranks.world_size)
    ds_config = cut_down(load_ds_config(name), ranks.world_size)
    engines = build_engines(*build_models(parts.config, load_manifest(shards)), parts.config, ds_config, accumulation)
    waits = HostWaits(*MAY_WAIT)
    losses = run_steps(parts, engines, ranks, waits)
    made = [engines.generator.guard.norms.num_updates, engines.discriminator.guard.norms.num_updates]
    return {
        "steps": meet_nan(engines, parts, ranks),
        "losses": losses,
        "updates": made,
        "waits": sorted(waits.found),
        "types": [types_of(engines.generator), types_of(engines.discriminator)],
    }


def meet_nan(engines: EnginePair, parts: Parts, ranks: Ranks) -> dict[str, Any]:
    """One step whose discriminator's loss is no number, and a good one: why it was refused, what each left changed."""
    step = RtdStep(engines, parts.config, parts.sampling, ranks.world_size)
    batches = parts.training.step_batches(0, 1, ranks.rank, ranks.world_size)
    counts = GlobalCounts(*ranks.sum_on_host([batches[0].num_masked, batches[0].num_live]))
    engine, found = engines.discriminator, {}
    for name, factor in (("nan", math.nan), ("good", 1.0)):
        before, update = take_state(engine.deepspeed).tensors, engine.update
        engine.update = lambda loss, is_last, factor=factor, update=update: update(loss * factor, is_last)  # type: ignore[method-assign]
        step.run(batches, counts, NUM_STEPS, MetricSums(ranks.device))
        engine.update = update  # type: ignore[method-assign]
        after = take_state(engine.deepspeed).tensors
        found[name] = {
            "refused": engine.note(engines.take_decisions()["discriminator"]),
            "changed": [key for key in before if not torch.equal(before[key], after[key])],
            "skipped": engine.num_skipped_steps,
        }
    return found


def main(shards: Path, file: Path) -> None:
    """Run all; each rank calls this."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    # autocast last: DeepSpeed remembers for the whole process that it was on
    names = sorted(list_ds_configs(), key=lambda name: "autocast" in name)
    results = {name: run_ds_config(name, shards, ranks) for name in names}
    if ranks.is_first:
        file.write_text(json.dumps(results))
    leave_ranks()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")))
