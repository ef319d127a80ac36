"""Four steps of both models under every ZeRO stage: torchrun -m tests.integration.zero_stages PART SHARDS FILE.

What: for each case of PART ("fast" or "all") the losses and gradient norms of every step, held-out losses, the
parameters that got no gradient, and what made the host wait; written to FILE as JSON by the first rank.
Used by: tests/integration/test_zero_stages.py.
"""

import itertools
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.utils import safe_get_full_grad

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.batch_size import consumed_samples, micro_batches_at
from disentangled.trainer.distributed import Ranks, join_ranks, leave_ranks
from disentangled.trainer.engine import EnginePair, ModelEngine, build_engines, build_models
from disentangled.trainer.evaluate import evaluate, evaluation_sampling
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import RunConfig, accumulation_steps
from tests.host_waits import HostWaits
from tests.trainer.tiny_run import Parts, build_parts, tiny_config

NUM_STEPS = 4
NUM_VALIDATION_WINDOWS = 10
GLOBAL_SEQUENCES = 8
# what is trained
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "gdes": (),
    "es": ("model.embedding_sharing=es",),
    "nes": ("model.embedding_sharing=nes",),
    "joint": ("optimizer.update=joint",),
    "stable": ("optimizer.kind=stable_adamw", "optimizer.bias_correction=false"),
    "rising": ("batch.first_sequences=4", "batch.rise_steps=2"),
    "shallow": ("model.generator_num_hidden_layers=1",),  # where the mask decoder runs the only layer
    "recomputed": ("machine.recompute_generator=true", "machine.recompute_discriminator=true"),
}
SPLIT = ("gdes", "es", "nes", "joint")  # those that run with every accumulation, and without clipping too
CLIPPINGS = {"clipped": 1.0, "unclipped": 0.0}
ACCUMULATIONS = (1, 2, 4)
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


@dataclass(frozen=True)
class Case:
    """One run under DeepSpeed: names of ALGORITHMS, CLIPPINGS and ENGINES, and micro-batches of a step on a rank."""

    algorithm: str
    clipping: str
    engine: str
    accumulation: int

    def __str__(self) -> str:
        return f"{self.algorithm} {self.clipping}, {self.engine}, {self.accumulation} micro-batches"


def list_cases(part: str, num_ranks: int) -> list[Case]:
    """What runs on so many ranks: as many rows a step in every case."""
    if part == "fast":
        engines = [engine for engine in ENGINES if engine != "stage 3"]
        return [Case(name, "clipped", engine, 4 // num_ranks) for name in ("gdes", "joint") for engine in engines]
    accumulations = [number for number in ACCUMULATIONS if GLOBAL_SEQUENCES % (number * num_ranks) == 0]
    splits = [Case(*names) for names in itertools.product(SPLIT, ["clipped"], ENGINES, accumulations)]
    return splits + [
        Case(name, clipping, engine, 2)
        for name, clipping, engine in itertools.product(ALGORITHMS, CLIPPINGS, ENGINES)
        if (name in SPLIT) == (clipping == "unclipped")
    ]


def case_config(shards: Path, algorithm: str, clipping: str, micro_sequences: int) -> RunConfig:
    """The run that all stages and any split of its 8 rows a step must agree on."""
    return tiny_config(
        shards,
        *ALGORITHMS[algorithm],
        f"optimizer.gradient_clipping={CLIPPINGS[clipping]}",
        f"batch.global_sequences={GLOBAL_SEQUENCES}",
        f"batch.micro_sequences={micro_sequences}",
        "model.hidden_dropout_prob=0.1",
        "model.attention_probs_dropout_prob=0.1",
        "optimizer.discriminator_learning_rate=1e-3",
    )


# Where a step may wait: in what only a CPU runs, two checks and the attention of packed rows; and in watch_gradients,
# below.
MAY_WAIT = ("check_tensors", "check_draw", "packed_groups", "look_at_gradients")


def run_steps(
    parts: Parts, engines: EnginePair, ranks: Any, waits: AbstractContextManager[Any] | None = None
) -> list[float]:
    """Everything that is reported of a run, as means over all ranks; the last step runs within `waits`."""
    step = RtdStep(engines, parts.config, parts.sampling, ranks.world_size)
    losses: list[float] = []
    batch = parts.config.batch
    for number in range(NUM_STEPS):
        sums = MetricSums(ranks.device)
        consumed, accumulation = consumed_samples(batch, number), micro_batches_at(batch, number, ranks.world_size)
        batches = parts.training.step_batches(consumed, accumulation, ranks.rank, ranks.world_size)
        counts = ranks.sum_on_host([sum(b.num_masked for b in batches), sum(b.num_live for b in batches)])
        with waits if waits and number == NUM_STEPS - 1 else nullcontext():
            step.run(batches, GlobalCounts(*counts), number, sums)
        metrics = sums.take()
        norms = (engines.generator.gradient_norm(), engines.discriminator.gradient_norm())
        losses += [metrics["mlm_loss"], metrics["rtd_loss"], *norms, engines.delta_ratio()]
    windows = np.arange(NUM_VALIDATION_WINDOWS)
    sampling = evaluation_sampling(parts.sampling)
    held_out = evaluate(engines, parts.validation, sampling, ranks, windows, batch.micro_sequences)
    return [*losses, held_out["validation_mlm_loss"], held_out["validation_rtd_loss"]]


def watch_gradients(engine: ModelEngine, without: set[str]) -> None:
    """Before each update add to `without` the parameters whose gradient is absent or zero everywhere."""
    update = engine.deepspeed.step

    def look_at_gradients() -> None:
        for name, parameter in engine.module.named_parameters():
            gradient = safe_get_full_grad(parameter)
            if gradient is None or not gradient.any():
                without.add(name)

    def look_and_step() -> None:
        if engine.deepspeed.is_gradient_accumulation_boundary():
            look_at_gradients()
        update()

    engine.deepspeed.step = look_and_step


def run_case(shards: Path, case: Case, ranks: Ranks) -> dict[str, Any]:
    """One run: its losses and the parameters without a gradient."""
    micro_sequences = GLOBAL_SEQUENCES // (case.accumulation * ranks.world_size)
    parts = build_parts(case_config(shards, case.algorithm, case.clipping, micro_sequences))
    models = build_models(parts.config, load_manifest(shards))
    accumulation = accumulation_steps(parts.config.batch, ranks.world_size)
    engines = build_engines(*models, parts.config, ENGINES[case.engine], accumulation)
    without: set[str] = set()
    watch_gradients(engines.generator, without)
    watch_gradients(engines.discriminator, without)
    waits = HostWaits(*MAY_WAIT)
    losses = run_steps(parts, engines, ranks, waits)
    return {"losses": losses, "without_gradient": sorted(without), "waits": sorted(waits.found)}


def meet_dead_parameter(shards: Path, ranks: Ranks) -> str:
    """What a second step says at stage 3 whose generator has left its positions out; empty: nothing."""
    parts = build_parts(case_config(shards, "gdes", "clipped", GLOBAL_SEQUENCES // ranks.world_size))
    models = build_models(parts.config, load_manifest(shards))
    engines = build_engines(*models, parts.config, ENGINES["stage 3 gathering always"], 1)
    step = RtdStep(engines, parts.config, parts.sampling, ranks.world_size)
    batches = parts.training.step_batches(0, 1, ranks.rank, ranks.world_size)
    counts = GlobalCounts(*ranks.sum_on_host([batches[0].num_masked, batches[0].num_live]))
    step.run(batches, counts, 0, MetricSums(ranks.device))
    engines.generator.module.mask_decoder.position_embeddings.forward = lambda positions: torch.zeros(())
    try:
        step.run(batches, counts, 1, MetricSums(ranks.device))
    except RuntimeError as error:
        return str(error)
    return ""


def main(part: str, shards: Path, file: Path) -> None:
    """Run all cases; each rank calls this."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    results: dict[str, Any] = {str(case): run_case(shards, case, ranks) for case in list_cases(part, ranks.world_size)}
    results["dead parameter"] = meet_dead_parameter(shards, ranks)
    if ranks.is_first:
        file.write_text(json.dumps(results))
    leave_ranks()


if __name__ == "__main__":
    name, *paths = (argument for argument in sys.argv[1:] if not argument.startswith("--"))
    main(name, *(Path(path) for path in paths))
