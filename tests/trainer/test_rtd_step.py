"""The step in plain torch: engines are tests/trainer/plain_engines.PlainEngine. DeepSpeed's are compared with these in
tests/integration/test_zero_stages.py. Models are float64, so that equal means equal to rounding of about 1e-15.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.model.noise import discriminator_noise, generator_noise
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.optim import build_optimizer
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.schedule import learning_rate_factor
from tests.trainer.tiny_run import CPU, Parts, build_parts, tiny_config

DROPOUT = ("model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1")
SHARINGS = ["gdes", "es", "nes"]
# Float64 sums in another order differ by 1e-15 of their size; Adam divides by sqrt(v) + 1e-6, which makes at most 1e-9
# of it for a gradient that is rounding itself, times a rate of 2e-3. The weights move by 1e-3 and more.
ROUNDING = 1e-11


def parts_of(shards: Path, *overrides: str) -> Parts:
    parts = build_parts(tiny_config(shards, *DROPOUT, *overrides))
    parts.generator.double()
    parts.discriminator.double()
    return parts


def counts_of(batches: Sequence[MaskedBatch]) -> GlobalCounts:
    return GlobalCounts(sum(b.num_masked for b in batches), sum(b.num_live for b in batches))


def run_steps(parts: Parts, engines: EnginePair, num_steps: int, accumulation: int) -> MetricSums:
    step = RtdStep(engines, parts.config, parts.sampling, world_size=1)
    sums = MetricSums(CPU)
    for number in range(num_steps):
        batches = parts.training.step_batches(number * 8, accumulation, rank=0, world_size=1)
        step.run(batches, counts_of(batches), number, sums)
    return sums


def largest_difference(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


class Recorder:
    """Stands before an engine and keeps the arguments of each forward and the loss of each update."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self.calls: list[tuple[Any, ...]] = []
        self.losses: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls.append(arguments)
        return self._engine(*arguments, **keywords)

    def update(self, loss: Tensor, is_last: bool) -> None:
        self.losses.append(float(loss.detach()))
        self._engine.update(loss, is_last)


def recorded(engines: EnginePair) -> tuple[EnginePair, Recorder, Recorder]:
    generator, discriminator = Recorder(engines.generator), Recorder(engines.discriminator)
    return EnginePair(generator, discriminator, zero_stage=0), generator, discriminator  # type: ignore[arg-type]


def reference_step(parts: Parts, optimizers: Sequence[torch.optim.Optimizer], batch: MaskedBatch, step: int) -> None:
    """The algorithm written down straight: generator's update, then the discriminator's on E_G just updated."""
    config, layout = parts.config, batch.layout()
    factor = learning_rate_factor(step, config.schedule)
    rates = (config.optimizer.learning_rate, config.optimizer.discriminator_learning_rate)
    noises = (generator_noise(config.run.seed, step), discriminator_noise(config.run.seed, step))
    for optimizer, rate in zip(optimizers, rates, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
    made = parts.generator(batch.original_ids, layout, batch.masked_rows, noises[0], parts.sampling)
    mlm_loss = made.mlm_loss_sum * (1.0 / batch.num_masked)
    move(parts.generator, optimizers[0], mlm_loss)
    rows = parts.generator.word_embeddings.detach()[made.corrupted_ids]
    judged = parts.discriminator(made.corrupted_ids, batch.original_ids, layout, noises[1], rows)
    move(parts.discriminator, optimizers[1], judged.rtd_loss_sum * (50.0 / batch.num_live))


def move(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def test_steps_are_those_of_the_algorithm_written_down(shards: Path) -> None:
    parts = parts_of(shards, "batch.micro_sequences=8", "optimizer.discriminator_learning_rate=1e-3")
    expected = copy.deepcopy(parts)
    run_steps(parts, parts.plain_engines(), 4, accumulation=1)
    section = parts.config.optimizer
    optimizers = [
        torch.optim.AdamW(
            [
                {"params": [p for n, p in model.named_parameters() if not n.endswith(("bias", "LayerNorm.weight"))]},
                {
                    "params": [p for n, p in model.named_parameters() if n.endswith(("bias", "LayerNorm.weight"))],
                    "weight_decay": 0.0,
                },
            ],
            betas=(section.beta1, section.beta2),
            eps=section.epsilon,
            weight_decay=section.weight_decay,
            fused=True,  # as the trainer's on a CPU, or the last bits differ
        )
        for model in (expected.generator, expected.discriminator)
    ]
    for step in range(4):
        reference_step(expected, optimizers, expected.training.step_batches(step * 8, 1, 0, 1)[0], step)
    assert largest_difference(parts.generator, expected.generator) == 0
    assert largest_difference(parts.discriminator, expected.discriminator) == 0


@pytest.mark.parametrize("accumulation", [1, 2])
def test_discriminator_sees_the_rows_of_the_generator_just_updated(shards: Path, accumulation: int) -> None:
    parts = parts_of(shards, f"batch.micro_sequences={8 // accumulation}")
    before = parts.generator.word_embeddings.detach().clone()
    engines, generator, discriminator = recorded(parts.plain_engines())
    run_steps(parts, engines, 1, accumulation)
    after = parts.generator.word_embeddings
    assert len(generator.calls) == len(discriminator.calls) == accumulation
    for corrupted_ids, *_, rows in discriminator.calls:
        assert torch.equal(rows, F.embedding(corrupted_ids, after.detach()))
        assert not torch.equal(rows, F.embedding(corrupted_ids, before))
        assert not rows.requires_grad


def test_replacements_come_from_the_logits_of_the_loss(shards: Path) -> None:
    # drawn by the generator as it was before its update, dropout included
    parts = parts_of(shards, "batch.micro_sequences=8")
    untouched = copy.deepcopy(parts.generator)
    engines, generator, discriminator = recorded(parts.plain_engines())
    run_steps(parts, engines, 1, accumulation=1)
    expected = untouched(*generator.calls[0]).corrupted_ids
    assert torch.equal(discriminator.calls[0][0], expected)
    changed = expected != discriminator.calls[0][1]
    assert changed.any() and set(changed.nonzero().flatten().tolist()) <= set(generator.calls[0][2].tolist())


def test_rtd_moves_delta_and_never_the_generator(shards: Path) -> None:
    results = []
    for rtd_lambda in (1e-9, 50.0):  # a lambda under Adam's epsilon hardly moves anything
        parts = parts_of(shards, f"optimizer.rtd_lambda={rtd_lambda}", "optimizer.gradient_clipping=0")
        run_steps(parts, parts.plain_engines(), 2, accumulation=2)
        results.append(parts)
    weak, strong = results
    assert largest_difference(weak.generator, strong.generator) == 0
    deltas = [p.discriminator.deberta.embeddings.word_embeddings_delta.weight.detach() for p in results]
    assert float(deltas[0].abs().max()) < 1e-3 * float(deltas[1].abs().max())


def test_mlm_moves_the_shared_table_and_never_delta(shards: Path) -> None:
    parts = parts_of(shards, "batch.micro_sequences=8")
    delta = parts.discriminator.deberta.embeddings.word_embeddings_delta.weight
    engines, *_ = recorded(parts.plain_engines())
    engines.discriminator.update = lambda loss, is_last: None  # type: ignore[method-assign]
    table = parts.generator.word_embeddings
    before = table.detach().clone()
    run_steps(parts, engines, 2, accumulation=1)
    assert not torch.equal(table, before)
    assert delta.grad is None and not delta.detach().any()


@pytest.mark.parametrize("sharing", SHARINGS)
def test_step_does_not_depend_on_the_number_of_micro_batches(shards: Path, sharing: str) -> None:
    results = []
    for accumulation in (1, 2, 8):
        overrides = (f"batch.micro_sequences={8 // accumulation}", f"model.embedding_sharing={sharing}")
        parts = parts_of(shards, *overrides)
        start = copy.deepcopy(parts)
        sums = run_steps(parts, parts.plain_engines(), 3, accumulation)
        assert largest_difference(parts.generator, start.generator) > 1e-3
        assert largest_difference(parts.discriminator, start.discriminator) > 1e-3
        results.append((parts, sums.take()))
    whole, metrics = results[0]
    for split, split_metrics in results[1:]:
        assert largest_difference(split.generator, whole.generator) < ROUNDING
        assert largest_difference(split.discriminator, whole.discriminator) < ROUNDING
        # each loss sum is rounded to 2^-20 nats, once per micro-batch, 24 of them; there are more than 24 tokens
        assert split_metrics == pytest.approx(metrics, abs=2.0**-20)


def test_losses_of_all_ranks_average_to_the_mean_over_tokens(shards: Path) -> None:
    # DeepSpeed averages gradients over ranks; micro-batches with unequal numbers of targets must not weigh the same
    world_size, losses = 2, {"generator": 0.0, "discriminator": 0.0}
    parts = parts_of(shards, "batch.micro_sequences=2", "optimizer.learning_rate=1e-12", "masking.unit=word")
    batches = {rank: parts.training.step_batches(0, 2, rank, world_size) for rank in range(world_size)}
    counts = counts_of([batch for own in batches.values() for batch in own])
    assert len({batch.num_masked for own in batches.values() for batch in own}) > 1
    sums = MetricSums(CPU)
    for rank in range(world_size):
        engines, generator, discriminator = recorded(copy.deepcopy(parts).plain_engines())
        RtdStep(engines, parts.config, parts.sampling, world_size).run(batches[rank], counts, 0, sums)
        losses["generator"] += sum(generator.losses) / world_size
        losses["discriminator"] += sum(discriminator.losses) / world_size
    metrics = sums.take()
    assert losses["generator"] == pytest.approx(metrics["mlm_loss"], abs=2.0**-20)
    assert losses["discriminator"] == pytest.approx(50.0 * metrics["rtd_loss"], abs=50 * 2.0**-20)


def test_learning_rates_of_both_models_follow_the_schedule(shards: Path) -> None:
    rates = ("optimizer.learning_rate=1e-3", "optimizer.discriminator_learning_rate=2e-4")
    parts = parts_of(shards, *rates)
    engines = parts.plain_engines()
    run_steps(parts, engines, 6, accumulation=2)
    factors = [0.25, 0.5, 0.75, 1.0, 1.0, 15 / 16]  # 4 steps of warm-up, 20 in all
    assert engines.generator.learning_rates == pytest.approx([1e-3 * f for f in factors])  # type: ignore[attr-defined]
    assert engines.discriminator.learning_rates == pytest.approx([2e-4 * f for f in factors])  # type: ignore[attr-defined]


def test_es_gives_the_table_the_sum_of_both_gradients(shards: Path) -> None:
    parts = parts_of(shards, "model.embedding_sharing=es", "batch.micro_sequences=4")
    batches = parts.training.step_batches(0, 2, 0, 1)
    counts = counts_of(batches)
    joint = copy.deepcopy(parts)
    losses = []
    for batch in batches:
        layout = batch.layout()
        made = joint.generator(
            batch.original_ids, layout, batch.masked_rows, generator_noise(1, 0), joint.sampling, needs_shared_rows=True
        )
        judged = joint.discriminator(
            made.corrupted_ids, batch.original_ids, layout, discriminator_noise(1, 0), made.shared_rows
        )
        losses.append(made.mlm_loss_sum / counts.num_masked + 50.0 * judged.rtd_loss_sum / counts.num_live)
    torch.stack(losses).sum().backward()
    engines, *_ = recorded(parts.plain_engines(moves=False))
    RtdStep(engines, parts.config, parts.sampling, 1).run(batches, counts, 0, MetricSums(CPU))
    for name in ("generator", "discriminator"):
        of_joint = dict(getattr(joint, name).named_parameters())
        for parameter, weight in getattr(parts, name).named_parameters():
            torch.testing.assert_close(weight.grad, of_joint[parameter].grad, rtol=1e-9, atol=1e-12)
    assert parts.generator.word_embeddings.grad is not None


def joint_step(parts: Parts, optimizer: torch.optim.Optimizer, batches: Sequence[MaskedBatch], step: int) -> None:
    """One loss L_MLM + lambda L_RTD, one backward, one update of all weights; RTD's gradient stops at E_G."""
    counts, config = counts_of(batches), parts.config
    for group in optimizer.param_groups:
        group["lr"] = config.optimizer.learning_rate * learning_rate_factor(step, config.schedule)
    noises = (generator_noise(config.run.seed, step), discriminator_noise(config.run.seed, step))
    losses = []
    for batch in batches:
        layout = batch.layout()
        made = parts.generator(batch.original_ids, layout, batch.masked_rows, noises[0], parts.sampling)
        rows = parts.generator.word_embeddings.detach()[made.corrupted_ids]
        judged = parts.discriminator(made.corrupted_ids, batch.original_ids, layout, noises[1], rows)
        losses.append(made.mlm_loss_sum / counts.num_masked + 50.0 * judged.rtd_loss_sum / counts.num_live)
    optimizer.zero_grad()
    torch.stack(losses).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_joint_steps_are_those_of_one_loss_and_one_optimizer(shards: Path, accumulation: int) -> None:
    # without clipping: ours is per model, see rtd_step.py
    one_rate = ("optimizer.discriminator_learning_rate=0", "optimizer.gradient_clipping=0")
    parts = parts_of(shards, *one_rate, f"batch.micro_sequences={8 // accumulation}", "optimizer.update=joint")
    expected, decoupled = copy.deepcopy(parts), parts_of(shards, *one_rate)
    section = parts.config.optimizer
    both = nn.ModuleList([expected.generator, expected.discriminator])
    optimizer = build_optimizer(both, section, section.learning_rate)
    for step in range(4):
        joint_step(expected, optimizer, expected.training.step_batches(step * 8, accumulation, 0, 1), step)
    run_steps(parts, parts.plain_engines(), 4, accumulation)
    run_steps(decoupled, decoupled.plain_engines(), 4, 2)
    assert largest_difference(parts.generator, expected.generator) < ROUNDING
    assert largest_difference(parts.discriminator, expected.discriminator) < ROUNDING
    assert largest_difference(parts.discriminator, decoupled.discriminator) > 1e-4


def test_joint_shows_the_discriminator_the_rows_of_before_the_update(shards: Path) -> None:
    parts = parts_of(shards, "batch.micro_sequences=4", "optimizer.update=joint")
    before = parts.generator.word_embeddings.detach().clone()
    engines, _, discriminator = recorded(parts.plain_engines())
    run_steps(parts, engines, 1, accumulation=2)
    assert not torch.equal(parts.generator.word_embeddings, before)
    for corrupted_ids, *_, rows in discriminator.calls:
        assert torch.equal(rows, F.embedding(corrupted_ids, before)) and not rows.requires_grad


def test_nes_gives_the_discriminator_no_rows(shards: Path) -> None:
    parts = parts_of(shards, "model.embedding_sharing=nes", "batch.micro_sequences=8")
    engines, _, discriminator = recorded(parts.plain_engines())
    run_steps(parts, engines, 1, accumulation=1)
    assert discriminator.calls[0][-1] is None


@pytest.mark.parametrize("sharing", SHARINGS)
def test_every_parameter_gets_a_gradient_from_every_micro_batch(shards: Path, sharing: str) -> None:
    # ZeRO-3 would apply an old gradient where there is none: also where a micro-batch has nothing to predict
    parts = parts_of(shards, f"model.embedding_sharing={sharing}", "batch.micro_sequences=8")
    engines = parts.plain_engines(moves=False)
    full = parts.training.step_batches(0, 1, 0, 1)[0]
    for batch in (full, parts.training.build([]), replace(full, buffer=full.buffer[: -2 * full.num_masked])):
        for model in (parts.generator, parts.discriminator):
            model.zero_grad()
        RtdStep(engines, parts.config, parts.sampling, 1).run([batch], counts_of([batch]), 0, MetricSums(CPU))
        for model in (parts.generator, parts.discriminator):
            gradients = {name: weight.grad for name, weight in model.named_parameters()}
            assert not [name for name, gradient in gradients.items() if gradient is None]
            assert not [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
            if batch is full:
                assert not [name for name, gradient in gradients.items() if not gradient.any()]


@pytest.mark.parametrize(("mask_share", "shows_mask"), [(1.0, True), (0.0, False)])
def test_generator_sees_what_the_masking_rule_shows(shards: Path, mask_share: float, shows_mask: bool) -> None:
    parts = parts_of(shards, "batch.micro_sequences=8", f"masking.mask_share={mask_share}")
    (batch,) = parts.training.step_batches(0, 1, 0, 1)
    seen: list[Tensor] = []
    parts.generator.deberta.embeddings.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    run_steps(parts, parts.plain_engines(), 1, accumulation=1)
    expected = batch.original_ids.clone()
    if shows_mask:
        expected[batch.masked_rows] = parts.manifest.special_ids.mask
    assert batch.num_masked > 0 and torch.equal(seen[0], expected)
