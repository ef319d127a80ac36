"""The generator and the discriminator as two DeepSpeed engines.

What: two engines, because only then are clipping, skipped steps and ZeRO's bookkeeping those of two separate models at
every stage (docs/decisions/0002-two-engines.md). The discriminator never owns E_G: its rows come in as an activation.
Used by: trainer/rtd_step.py, trainer/evaluate.py, trainer/checkpoint.py. Tested by tests/trainer/test_rtd_step.py.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch.distributed as dist
import torch.nn.functional as F
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from disentangled.data_prep.shard_schema import Manifest
from disentangled.model.compile import compile_layers
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.trainer.adamw import AdamW
from disentangled.trainer.ds_config import merge_ds_config, precision_of, zero_stage_of
from disentangled.trainer.fragments import base_optimizer, is_replicated
from disentangled.trainer.gradient_watch import GradientWatch
from disentangled.trainer.norms import norm_of, norm_of_all
from disentangled.trainer.optim import build_optimizer, peak_learning_rates
from disentangled.trainer.partitions import add_over_ranks, pieces_of
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.unread_norms import norms_unread
from disentangled.trainer.update_guard import Decision, UpdateGuard


class ModelEngine:
    """One model under DeepSpeed, with the few things that a step needs of it.

    Args:
        spike_factor, clipping: see trainer/update_guard.py; DeepSpeed itself is not to clip.
    """

    def __init__(self, engine: Any, spike_factor: float = 0.0, clipping: float = 0.0) -> None:
        self.deepspeed = engine
        self.guard = UpdateGuard(base_optimizer(engine), self._norm_before_update, spike_factor, clipping)
        self._decision: Decision | None = None
        self._watch = GradientWatch(engine.module)
        self._parameters = list(engine.module.parameters())

    @property
    def module(self) -> Any:
        """The plain model."""
        return self.deepspeed.module

    @property
    def num_skipped_steps(self) -> int:
        """Updates that a non-finite gradient prevented."""
        return int(self.deepspeed.skipped_steps)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Forward."""
        return self.deepspeed(*arguments, **keywords)

    def update(self, loss: Tensor, is_last: bool) -> None:
        """Backward of the loss as it is, and an update after a step's last micro-batch.

        The engine counts micro-batches too, but as if all steps had the same number (trainer/batch_size.py).
        """
        engine = self.deepspeed
        engine.set_gradient_accumulation_boundary(is_last)
        engine.backward(loss, scale_wrt_gas=False)
        self._watch.check()
        if not is_last:
            engine.step()
            return
        reads_norms = engine.fp16_enabled() or not self.guard.decides_on_device
        with nullcontext() if reads_norms else norms_unread(engine.optimizer):
            self._decision = self.guard.watch(engine.step)

    def take_decision(self) -> Decision | None:
        """What was decided about the update made since this was asked last; None: there was none, or it is no news.

        No news is an fp16 update that DeepSpeed gave up while it could lower the loss scale.
        """
        decision, self._decision = self._decision, None
        scaler = getattr(self.deepspeed.optimizer, "loss_scaler", None)
        is_scaling = self.deepspeed.fp16_enabled() and scaler is not None and scaler.loss_scale > 1.0
        return None if decision is not None and decision.is_deepspeeds and is_scaling else decision

    def note(self, decision: Decision) -> str:
        """Why the update was not made, empty where it was; counts it, if DeepSpeed has not."""
        refusal = decision.refusal()
        self.deepspeed.skipped_steps += bool(refusal) and not decision.is_deepspeeds
        return refusal

    def set_learning_rate(self, learning_rate: float, resting_group: str | None = None) -> None:
        """Set the rate of all parameter groups; that of the resting one to 0, where nothing moves or decays."""
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = 0.0 if resting_group is not None and group["name"] == resting_group else learning_rate

    def gradient_norm(self) -> float:
        """The gradient's norm before clipping at the last update, infinite if not finite; waits for the device."""
        return float(self.guard.norm)

    def _norm_before_update(self) -> Tensor | float:
        if is_replicated(self.deepspeed):  # stage 0: nobody else takes the norm
            return norm_of_all([p.grad for p in self._parameters if p.grad is not None])
        norm: Tensor | float = self.deepspeed.optimizer._global_grad_norm
        return norm


@dataclass(frozen=True)
class EnginePair:
    """Both engines; `.module` of each is the plain model."""

    generator: ModelEngine
    discriminator: ModelEngine
    zero_stage: int

    def gathered(self, *parameters: Tensor) -> AbstractContextManager[Any]:
        """Make whole parameters readable inside: gathers them at ZeRO-3, nothing else."""
        if self.zero_stage < 3:
            return nullcontext()
        return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=None)

    @contextmanager
    def generator_rows(self) -> Iterator[Any]:
        """A function ids [T] -> E_G[ids] [T, D], detached, good inside the context only."""
        table = self.generator.module.word_embeddings
        with self.gathered(table):
            yield lambda ids: F.embedding(ids, table.detach())

    def take_decisions(self) -> dict[str, Decision]:
        """What was decided about the updates of the step just run, by model."""
        both = {"generator": self.generator.take_decision(), "discriminator": self.discriminator.take_decision()}
        return {name: decision for name, decision in both.items() if decision is not None}

    def delta_ratio(self) -> float:
        """||E_Delta|| / ||E_G|| for gdes, ||E_D|| / ||E_G|| for nes, 0 for es (there is no second table)."""
        embeddings = self.discriminator.module.deberta.embeddings
        if embeddings.table == "none":
            return 0.0
        own = embeddings.word_embeddings_delta if embeddings.table == "delta" else embeddings.word_embeddings
        shared = self.generator.module.word_embeddings
        with self.gathered(own.weight), self.gathered(shared):
            return float(norm_of(own.weight) / norm_of(shared))


def check_engine_file(config: RunConfig, ds_config: dict[str, Any]) -> None:
    """Raise ValueError where the machine, DeepSpeed or the recipe cannot do what the engine's file says."""
    precision, stage = precision_of(ds_config), zero_stage_of(ds_config)
    merged = merge_ds_config(ds_config, micro_sequences=1, accumulation=1)
    if precision == "fp16" and not get_accelerator().is_fp16_supported():
        raise ValueError(
            f"the --engine file says fp16, which the accelerator here ({get_accelerator().device_name()}) cannot: use "
            "an --engine of bf16, torch_autocast or fp32"
        )
    if precision in ("bf16", "fp16") and stage == 0 and merged["data_types"]["grad_accum_dtype"] == "fp32":
        raise ValueError(
            f"the --engine file says {precision} at ZeRO stage 0, where DeepSpeed cannot accumulate gradients in fp32: "
            "use stage 1, 2 or 3, or torch_autocast instead"
        )
    if precision == "bf16" and stage == 1 and not merged["bf16"]["immediate_grad_update"]:
        raise ValueError(
            "the --engine file says bf16.immediate_grad_update false at ZeRO stage 1, where DeepSpeed would add the "
            "gradients of earlier micro-batches once more with each later one: leave the key out"
        )
    if precision == "autocast" and merged["torch_autocast"]["dtype"] not in ("bfloat16", "bf16"):
        raise ValueError(
            f"the --engine file says torch_autocast in {merged['torch_autocast']['dtype']}, whose loss scale each rank "
            "would have of its own: set torch_autocast.dtype to bfloat16, or use fp16 instead"
        )
    if config.model.embedding_sharing == "es" and precision == "fp16":
        raise ValueError("model.embedding_sharing es needs one loss scale for both models: use bf16 or fp32, not fp16")
    if stage == 3 and (config.machine.compile_generator or config.machine.compile_discriminator):
        raise ValueError(
            "machine.compile_generator and compile_discriminator gain nothing at ZeRO stage 3, whose hooks around each "
            "module cut the code into pieces that are compiled for minutes: use stage 0, 1 or 2, or leave them false"
        )


def build_models(config: RunConfig, manifest: Manifest) -> tuple[Generator, Discriminator]:
    """Both models with their initial weights, a pure function of the config and the vocabulary."""
    vocab_size = config.model.vocab_size or manifest.vocab_size
    needed = manifest.special_ids.mask + 1
    if vocab_size < needed:
        raise ValueError(
            f"model.vocab_size is {vocab_size}, but the shards' tokenizer uses {needed} ids: "
            "leave the key out or raise it"
        )
    generator = Generator(config.model.generator(vocab_size), manifest.special_ids.mask, config.run.seed)
    # another seed: the two trunks must not start as copies of each other
    discriminator = Discriminator(
        config.model.discriminator(vocab_size), config.model.embedding_sharing, config.run.seed + 1
    )
    return generator, discriminator


def build_engines(
    generator: Generator,
    discriminator: Discriminator,
    config: RunConfig,
    ds_config: dict[str, Any],
    accumulation: int,
) -> EnginePair:
    """Wrap both models. The DeepSpeed config is the same; optimizers, norms and loss scales are each engine's own."""
    merged = merge_ds_config(ds_config, micro_sequences=config.batch.micro_sequences, accumulation=accumulation)
    machine = config.machine
    generator.deberta.encoder.recompute = machine.recompute_generator
    discriminator.deberta.encoder.recompute = machine.recompute_discriminator
    if machine.compile_generator:
        compile_layers(generator)
    if machine.compile_discriminator:
        compile_layers(discriminator)
    engines = []
    for model, rate in zip((generator, discriminator), peak_learning_rates(config.optimizer), strict=True):
        table_apart = model is generator and config.continue_from.generator_warmup_steps > 0
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(model, config.optimizer, rate, zero_stage_of(ds_config), table_apart),
            config=dict(merged),
            dist_init_required=False,
        )
        if zero_stage_of(ds_config) == 0 and dist.get_world_size() == 1:
            engine.enable_backward_allreduce = False  # it would copy all gradients into buckets, and back, for nobody
        if isinstance(engine.basic_optimizer, AdamW) and not is_replicated(engine):
            engine.basic_optimizer.know_pieces(*pieces_of(engine), add_over_ranks)
        engines.append(ModelEngine(engine, config.faults.spike_factor, config.optimizer.gradient_clipping))
    return EnginePair(engines[0], engines[1], zero_stage_of(ds_config))
