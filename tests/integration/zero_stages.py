"""Four steps of both models under every ZeRO stage: deepspeed --module tests.integration.zero_stages SHARDS FILE.

What: for each entry of ENGINES and each way of sharing, the losses and gradient norms of every step, held-out losses,
and the parameters that got no gradient; written to FILE as JSON by the first rank.
Used by: tests/integration/test_zero_stages.py.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.distributed import Ranks, join_ranks, leave_ranks
from disentangled.trainer.engine import EnginePair, ModelEngine, build_engines, build_models
from disentangled.trainer.evaluate import evaluate, evaluation_sampling
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import RunConfig, accumulation_steps
from tests.trainer.tiny_run import Parts, build_parts, tiny_config

NUM_STEPS = 4
NUM_VALIDATION_WINDOWS = 10
MICRO_SEQUENCES = 2
SHARINGS = ("gdes", "es", "nes")
# nothing stays gathered: each module's weights come and go around every use
GATHERS_ALWAYS = {
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_param_persistence_threshold": 0,
    "stage3_prefetch_bucket_size": 0,
}
ENGINES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_optimization": {"stage": 0}},
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 3": {"zero_optimization": {"stage": 3}},
    "stage 3 gathering always": {"zero_optimization": {"stage": 3} | GATHERS_ALWAYS},
}


def zero_config(shards: Path, sharing: str) -> RunConfig:
    """The run that all stages must agree on; 8 rows a step."""
    return tiny_config(
        shards,
        f"model.embedding_sharing={sharing}",
        f"batch.micro_sequences={MICRO_SEQUENCES}",
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
        "optimizer.discriminator_learning_rate=1e-3",
    )


def run_steps(parts: Parts, engines: EnginePair, ranks: Any, accumulation: int) -> dict[str, Any]:
    """Everything that is reported of a run, as means over all ranks."""
    step = RtdStep(engines, parts.config, parts.sampling, ranks.world_size)
    losses = []
    for number in range(NUM_STEPS):
        sums = MetricSums(ranks.device)
        batches = parts.training.step_batches(
            number * parts.config.batch.global_sequences, accumulation, ranks.rank, ranks.world_size
        )
        counts = ranks.sum_on_host([sum(b.num_masked for b in batches), sum(b.num_live for b in batches)])
        step.run(batches, GlobalCounts(*counts), number, sums)
        metrics = sums.take()
        norms = (engines.generator.gradient_norm(), engines.discriminator.gradient_norm())
        losses += [metrics["mlm_loss"], metrics["rtd_loss"], *norms, engines.delta_ratio()]
    held_out = evaluate(
        engines,
        parts.validation,
        evaluation_sampling(parts.sampling),
        ranks,
        np.arange(NUM_VALIDATION_WINDOWS),
        MICRO_SEQUENCES,
    )
    return {"losses": [*losses, held_out["validation_mlm_loss"], held_out["validation_rtd_loss"]]}


def watch_gradients(engine: ModelEngine, without: set[str]) -> None:
    """Before each update add to `without` the parameters whose gradient is absent or zero everywhere."""
    update = engine.deepspeed.step

    def look_and_step() -> None:
        if engine.deepspeed.is_gradient_accumulation_boundary():
            for name, parameter in engine.module.named_parameters():
                gradient = safe_get_full_grad(parameter)
                if gradient is None or not gradient.any():
                    without.add(name)
        update()

    engine.deepspeed.step = look_and_step


def run_engine(shards: Path, sharing: str, ds_config: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """One way of sharing under one DeepSpeed configuration."""
    parts = build_parts(zero_config(shards, sharing))
    accumulation = accumulation_steps(parts.config.batch, ranks.world_size)
    models = build_models(parts.config, load_manifest(shards))
    engines = build_engines(*models, parts.config, ds_config, accumulation)
    without: set[str] = set()
    watch_gradients(engines.generator, without)
    watch_gradients(engines.discriminator, without)
    return run_steps(parts, engines, ranks, accumulation) | {"without_gradient": sorted(without)}


def main(shards: Path, file: Path) -> None:
    """Run all; each rank calls this."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    results = {
        f"{sharing} {name}": run_engine(shards, sharing, ds_config, ranks)
        for sharing in SHARINGS
        for name, ds_config in ENGINES.items()
    }
    if ranks.is_first:
        file.write_text(json.dumps(results))
    leave_ranks()


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")))
