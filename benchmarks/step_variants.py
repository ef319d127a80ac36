"""The variants of `benchmarks.step`: ours on its two engines, and the rivals; and what is compared before any is timed.

What: a variant is built from the same weights, runs whole steps, and gives an answer: the generator's losses, the
discriminator's logits on ids that all are handed, and gradients of both losses, without dropout. Draws differ by
design, so no answer depends on one.
Used by: benchmarks/step.py. Tested by: tests/benchmarks/test_step.py.
Not here: the rivals' arithmetic (step_rivals.py), the parts of a step (step_breakdown.py).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.step_breakdown import PartClock, watch_engines
from benchmarks.step_problem import FIRST_PIECE, SEED, SPECIAL_IDS, StepProblem
from benchmarks.step_rivals import DELTA, RivalStep, Way
from disentangled.kernels.counter_rng import Stream
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator, Sampling, banned_ids
from disentangled.model.mlm_head import MaskedLanguageHead
from disentangled.trainer.distributed import join_ranks
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.engine import build_engines
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.rtd_step import RtdStep

ENGINES = {"fp32": "fp32_cpu", "bf16": "zero0_autocast"}
Weights = dict[str, dict[str, Tensor]]
Answer = dict[str, Tensor]


class Step(Protocol):
    """What a variant builds."""

    clock: PartClock

    def run(self, step: int) -> None:
        """Update both models once."""


@dataclass(frozen=True)
class Variant:
    """What it is called, how it is built, and what its answer is."""

    label: str
    build: Callable[[StepProblem, Weights], Any]
    answer: Callable[[Any, StepProblem], Answer]
    needs_gpu: bool = False
    is_ours: bool = False


class OurStep:
    """The trainer's own step on two DeepSpeed engines, its batches handed to it.

    Args:
        compiled: machine.compile_generator and compile_discriminator.
    """

    def __init__(self, problem: StepProblem, weights: Weights, compiled: bool) -> None:
        machine = replace(problem.config.machine, compile_generator=compiled, compile_discriminator=compiled)
        config = replace(problem.config, machine=machine)
        ranks = join_ranks()
        self.problem, self.clock = problem, PartClock(problem.device)
        generator, discriminator = make_models(problem)
        generator.load_state_dict(weights["generator"])
        discriminator.load_state_dict(weights["discriminator"])
        self.engines = build_engines(
            generator, discriminator, config, load_ds_config(ENGINES[problem.precision]), len(problem.batches)
        )
        watch_engines(self.engines, self.clock)
        self._sums = MetricSums(problem.device)
        self._step = RtdStep(self.engines, config, make_sampling(problem), ranks.world_size)

    def run(self, step: int) -> None:
        """Update both models once."""
        self._step.run(self.problem.batches, self.problem.counts, step, self._sums)


def make_models(problem: StepProblem) -> tuple[Generator, Discriminator]:
    """Ours, as the trainer makes them."""
    config = problem.config
    generator = Generator(config.model.generator(problem.vocab_size), SPECIAL_IDS.mask, config.run.seed)
    return generator, Discriminator(config.model.discriminator(problem.vocab_size), "gdes", config.run.seed + 1)


def make_sampling(problem: StepProblem) -> Sampling:
    """Replacements among ordinary pieces."""
    banned = banned_ids(problem.vocab_size, problem.vocab_size, tuple(range(FIRST_PIECE)), problem.device)
    return Sampling(problem.config.run.seed, Stream.REPLACEMENT, banned)


def make_weights(problem: StepProblem) -> Weights:
    """Weights that every variant begins with; E_Delta, which a run begins at zero, has a tenth of E_G's spread."""
    generator, discriminator = make_models(problem)
    with torch.no_grad():
        delta = discriminator.state_dict()[DELTA]
        random = torch.Generator().manual_seed(SEED)
        delta.copy_(torch.randn(delta.shape, generator=random) * (0.1 * problem.config.model.initializer_range))
    return {"generator": generator.state_dict(), "discriminator": discriminator.state_dict()}


def our_answer(step: OurStep, problem: StepProblem) -> Answer:
    """Losses, logits and gradients of ours, on the problem's first micro-batch."""
    generator, discriminator = step.engines.generator.module, step.engines.discriminator.module
    batch, layout, made = problem.batches[0], problem.batches[0].layout(), {}
    head: MaskedLanguageHead = generator.lm_predictions["lm_head"]
    hook = head.register_forward_hook(lambda module, inputs, output: made.update(losses=output.losses))
    with problem.autocast():
        output = generator(
            batch.original_ids, layout, batch.masked_rows, None, make_sampling(problem), masked_ids=batch.masked_ids
        )
    hook.remove()
    output.mlm_loss_sum.backward()
    ids = problem.replaced[0]
    shared = generator.word_embeddings.detach()[ids]
    with problem.autocast():
        judged = discriminator(ids, batch.original_ids, layout, None, shared)
    judged.rtd_loss_sum.backward()
    return read_answer(
        made["losses"], judged.logits, generator, dict(generator.named_parameters()), discriminator, problem
    )


def rival_answer(step: RivalStep, problem: StepProblem) -> Answer:
    """The same of a rival."""
    batch, ids = problem.batches[0], problem.replaced[0]
    with step.without_dropout():
        losses, _ = step.predict(batch)
        losses.sum().backward()
        logits, loss = step.judge(batch, ids)
        loss.backward()
    named = dict(step.generator.named_weights())
    return read_answer(losses, logits, step.generator, named, step.discriminator, problem)


def read_answer(
    losses: Tensor,
    logits: Tensor,
    generator: nn.Module,
    of_generator: dict[str, nn.Parameter],
    discriminator: nn.Module,
    problem: StepProblem,
) -> Answer:
    """An answer by names that all share; gradients are then taken away."""
    last = {"generator": problem.config.model.generator_num_hidden_layers - 1}
    last["discriminator"] = problem.config.model.num_hidden_layers - 1
    wanted = {
        "generator": ["deberta.embeddings.word_embeddings.weight", "lm_predictions.lm_head.dense.weight"],
        "discriminator": [DELTA, "mask_predictions.dense.weight"],
    }
    answer = {"generator losses": losses.detach().clone(), "discriminator logits": logits.detach().clone()}
    named = {"generator": of_generator, "discriminator": dict(discriminator.named_parameters())}
    for model, names in wanted.items():
        names += ["deberta.encoder.rel_embeddings.weight"]
        for layer in sorted({0, last[model]}):
            names += [f"deberta.encoder.layer.{layer}.attention.self.{part}_proj.weight" for part in ("query", "value")]
        for name in names:
            gradient = named[model][name].grad
            if gradient is None:
                raise ArithmeticError(f"{model}'s {name} got no gradient")
            answer[f"{model} {name}"] = gradient.clone()
    for module in (generator, discriminator):
        module.zero_grad(set_to_none=True)
    return answer


def exact_answer(problem: StepProblem, weights: Weights) -> Answer:
    """transformers' in float64."""
    step = RivalStep(replace(problem, precision="fp32"), weights, Way())
    step.generator.double(), step.discriminator.double()
    return {name: value.double() for name, value in rival_answer(step, problem).items()}


VARIANTS = {
    "ours": Variant("ours", partial(OurStep, compiled=False), our_answer, is_ours=True),
    "ours_compiled": Variant("ours, compiled layers", partial(OurStep, compiled=True), our_answer, is_ours=True),
    "transformers": Variant("transformers eager", partial(RivalStep, way=Way()), rival_answer),
    "transformers_compiled": Variant("transformers compiled", partial(RivalStep, way=Way(compiled=True)), rival_answer),
    "disentangled_flash": Variant(
        "DisentangledFlash", partial(RivalStep, way=Way(flash=True)), rival_answer, needs_gpu=True
    ),
    "original": Variant("original code's way", partial(RivalStep, way=Way(original=True)), rival_answer),
}
