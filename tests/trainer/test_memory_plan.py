"""Memory as planned against the tensors of real runs, at each ZeRO stage."""

import contextlib
import functools
import gc
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.kernels.counter_rng import Stream
from disentangled.model.generator import Generator, Sampling
from disentangled.model.noise import generator_noise
from disentangled.trainer.activation_trace import full_batch, trace_activations
from disentangled.trainer.allocated_bytes import AllocatedBytes
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.memory_plan import describe_memory, plan_memory
from disentangled.trainer.run_config import load_run_config
from tests.trainer.test_network_plan import trace_ranks
from tests.trainer.tiny_run import CPU

SLACK = 0.15  # what is promised
OVERRIDES = (
    "model.vocab_size=1024", "model.generator_num_hidden_layers=2", "batch.global_sequences=8",
    "batch.micro_sequences=2",
)  # fmt: skip
SMALL_BUCKETS = {"reduce_bucket_size": 100_000, "stage3_prefetch_bucket_size": 100_000}


def engine_of(stage: int, **others: Any) -> dict[str, Any]:
    return {"zero_optimization": {"stage": stage} | SMALL_BUCKETS | others}


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_plan_is_near_the_tensors_of_a_run(stage: int, num_ranks: int, shards: Path, tmp_path: Path) -> None:
    traced = trace_ranks(num_ranks, shards, tmp_path, engine_of(stage), *OVERRIDES)["peak"]
    planned = plan_memory(load_run_config("tiny", OVERRIDES), engine_of(stage), num_ranks, CPU)
    assert planned.total == pytest.approx(traced, rel=SLACK), planned


@pytest.mark.slow
@pytest.mark.parametrize("bucket_elements", [100_000, None])
@pytest.mark.parametrize("engine", ["zero0_autocast", "zero1_bf16", "zero2_bf16", "zero3_bf16"])
def test_plan_is_near_the_tensors_of_16_bits(
    engine: str, bucket_elements: int | None, shards: Path, tmp_path: Path
) -> None:
    # buckets as shipped are most of so small a run, small ones next to nothing of it
    ds_config = load_ds_config(engine)
    if bucket_elements:
        buckets = {name: bucket_elements for name in SMALL_BUCKETS}
        ds_config["zero_optimization"] = ds_config["zero_optimization"] | buckets
    traced = trace_ranks(2, shards, tmp_path, ds_config, *OVERRIDES)["peak"]
    planned = plan_memory(load_run_config("tiny", OVERRIDES), ds_config, 2, CPU)
    assert planned.total == pytest.approx(traced, rel=SLACK), planned


@pytest.mark.slow
@pytest.mark.parametrize("model", ["generator", "discriminator"])
def test_shorter_passes_tell_what_a_long_one_holds(model: str) -> None:
    # 64 tokens, 10 of them masked: 26 rows are a shorter pass, so 60 are not traced as such
    config = load_run_config(
        "tiny", [*OVERRIDES[:1], "model.generator_num_hidden_layers=6", "model.num_hidden_layers=6",
                 "batch.micro_sequences=60", "batch.global_sequences=60", "model.hidden_size=64"],
    )  # fmt: skip
    short = trace_activations(model, config, 1024, "fp32", CPU)
    assert short == pytest.approx(trace_activations(model, config, 1024, "fp32", CPU, exact=True), rel=0.03)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("model", ["generator", "discriminator"])
def test_a_pass_without_arithmetic_holds_what_a_computed_one_does(
    model: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # scores and logits of more elements than are computed
    config = load_run_config("tiny", [*OVERRIDES, "data.sequence_length=160", "model.num_hidden_layers=2"])
    skipped = trace_activations(model, config, 8192, precision, CPU)
    monkeypatch.setattr("disentangled.trainer.activation_trace.WithoutArithmetic", contextlib.nullcontext)
    assert skipped == pytest.approx(trace_activations(model, config, 8192, precision, CPU), rel=0.01)


def test_a_pass_without_arithmetic_leaves_nothing_uncomputed_in_caches() -> None:
    config = load_run_config("tiny", [*OVERRIDES, "data.sequence_length=160"])
    model, batch = Generator(config.model.generator(1024), mask_id=0, seed=1), full_batch(2, 160, 0.15)
    sampling = Sampling(0, Stream.REPLACEMENT, torch.zeros(1024, dtype=torch.bool))

    def loss() -> float:
        made = model(batch.original_ids, batch.layout(), batch.masked_rows, generator_noise(0, 0), sampling)
        return float(made.mlm_loss_sum.detach())

    empty_caches()
    expected = loss()
    empty_caches()
    trace_activations("generator", config, 1024, "fp32", CPU)
    assert loss() == expected


def empty_caches() -> None:
    for cached in gc.get_objects():
        if type(cached) is functools._lru_cache_wrapper and cached.__module__.startswith("disentangled."):
            cached.cache_clear()


def test_allocated_bytes_are_those_alive_at_once() -> None:
    with AllocatedBytes(CPU) as allocated:
        kept = torch.zeros(1000)
        (kept + 1).sum()  # one more, then gone
        torch.zeros(500).add_(1)
        assert allocated.peak() == pytest.approx(8000, abs=100)
        allocated.mark()
        kept.add_(1)
        assert allocated.peak() == 0
        torch.zeros(250)
        torch.zeros(10**6, device="meta")  # takes no memory
        assert allocated.peak() == 1000


def test_offloading_moves_states_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disentangled.trainer.memory_plan.trace_activations", lambda *arguments: 1000)
    config = load_run_config("tiny", OVERRIDES)
    plain = plan_memory(config, engine_of(3), 2, CPU)
    moved = plan_memory(config, engine_of(3, offload_optimizer={"device": "cpu"}), 2, CPU)
    assert (plain.host, moved.optimizer, moved.gradients) == (0, 0, 0)
    assert moved.total + moved.host == plain.total
    assert "on the host" in describe_memory(moved)[-1]


def test_16_bits_halve_what_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disentangled.trainer.memory_plan.trace_activations", lambda *arguments: 1000)
    config = load_run_config("tiny", OVERRIDES)
    full = plan_memory(config, engine_of(2), 2, CPU)
    half = plan_memory(config, engine_of(2) | {"bf16": {"enabled": True}}, 2, CPU)
    assert half.parameters * 2 == full.parameters
    assert half.optimizer == full.optimizer  # fp32 in both
    fewer = replace(config.batch, micro_sequences=4)
    one_pass = plan_memory(replace(config, batch=fewer), engine_of(2), 2, CPU)
    assert json.dumps(one_pass.gradients * 2) == json.dumps(full.gradients)  # nothing to add to
