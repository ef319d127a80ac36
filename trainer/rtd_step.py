"""One training step: the generator's update, then the discriminator's.

What, in order (arXiv 2111.09543 section 3.3, and the original code's decoupled training):
1. the ranks have counted masked and live tokens of the global batch; every loss is a sum divided by those counts, so
   neither the number of ranks nor of micro-batches changes it;
2. generator: for each micro-batch masked forward, replacements drawn from the same logits, backward; then its update;
3. discriminator: rows of the E_G just updated are looked up and detached, E_Delta added, forward over the corrupted
   text, lambda * RTD loss backward; then its update.
In the first continue_from.generator_warmup_steps steps of a continued run 3 is left out altogether and E_G rests: the
discriminator's weights, its optimizer's state and its embeddings E_G + E_Delta stay as they are, to the bit.
For es the discriminator goes between the generator's forward and its backward, because both gradients meet in E.
`optimizer.update = "joint"` is the ablation of one loss L_MLM + lambda L_RTD (arXiv 2003.10555 section 3.2): rows of
E_G are looked up before it moves. RTD's gradient reaches nothing of the generator's, so two updates from the same
weights are the one update of that loss; only clipping stays per model. es is joint by nature, and nes shares nothing.
`optimizer.update = "mlm"` is plain masked language modelling, what RTD is compared with: the generator, E_G with it, is
the model, and 3 is left out for good.
Nothing is read back from the device.
Used by: trainer/loop.py. Tested by tests/trainer/test_rtd_step.py and tests/integration/.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.generator import GeneratorOutput, Sampling
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import discriminator_noise, generator_noise
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.engine import EnginePair
from disentangled.trainer.metrics import MetricSums
from disentangled.trainer.optim import TABLE_GROUP, peak_learning_rates
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.schedule import learning_rate_factor


@dataclass(frozen=True)
class GlobalCounts:
    """Tokens of the global batch, over all ranks and micro-batches."""

    num_masked: int
    num_live: int


class RtdStep:
    """Runs steps on a pair of engines."""

    def __init__(self, engines: EnginePair, config: RunConfig, sampling: Sampling, world_size: int) -> None:
        self._engines = engines
        self._config = config
        self._sampling = sampling
        self._world_size = world_size
        self._sharing = config.model.embedding_sharing

    def run(self, batches: Sequence[MaskedBatch], counts: GlobalCounts, step: int, sums: MetricSums) -> None:
        """Update both models once. `step` is the number of updates done before; sums gains this step's metrics."""
        is_warming_up = step < self._config.continue_from.generator_warmup_steps
        self._set_learning_rates(step, TABLE_GROUP if is_warming_up else None)
        # DeepSpeed averages gradients over ranks: the factor makes that a sum
        mlm_weight = self._world_size / max(1, counts.num_masked)
        rtd_weight = self._world_size * self._config.optimizer.rtd_lambda / max(1, counts.num_live)
        if self._config.discriminator_rests(step):
            self._train_generator(batches, mlm_weight, step, sums)
        elif self._sharing == "es":
            self._run_shared(batches, mlm_weight, rtd_weight, step, sums)
        elif self._config.optimizer.update == "joint":
            self._run_joint(batches, mlm_weight, rtd_weight, step, sums)
        else:
            self._run_decoupled(batches, mlm_weight, rtd_weight, step, sums)

    def _run_decoupled(
        self, batches: Sequence[MaskedBatch], mlm_weight: float, rtd_weight: float, step: int, sums: MetricSums
    ) -> None:
        """The generator moves first; the discriminator sees the E_G just updated."""
        corrupted = self._train_generator(batches, mlm_weight, step, sums)
        rows = self._generator_rows(corrupted)
        for batch, corrupted_ids, shared_rows in zip(batches, corrupted, rows, strict=True):
            judged = self._discriminate(batch, batch.layout(), corrupted_ids, shared_rows, step, sums)
            self._engines.discriminator.update(judged.rtd_loss_sum * rtd_weight, batch is batches[-1])

    def _train_generator(
        self, batches: Sequence[MaskedBatch], mlm_weight: float, step: int, sums: MetricSums
    ) -> list[Tensor]:
        """The generator's update; returns each micro-batch's corrupted ids [T]."""
        corrupted = []
        for batch in batches:
            output = self._generate(batch, batch.layout(), step, sums)
            self._engines.generator.update(output.mlm_loss_sum * mlm_weight, batch is batches[-1])
            corrupted.append(output.corrupted_ids)
        return corrupted

    def _run_joint(
        self, batches: Sequence[MaskedBatch], mlm_weight: float, rtd_weight: float, step: int, sums: MetricSums
    ) -> None:
        """Both models move from the same weights: each micro-batch's rows are taken before its update, the last too."""
        for batch in batches:
            layout = batch.layout()
            output = self._generate(batch, layout, step, sums)
            rows = next(self._generator_rows([output.corrupted_ids]))
            self._engines.generator.update(output.mlm_loss_sum * mlm_weight, batch is batches[-1])
            judged = self._discriminate(batch, layout, output.corrupted_ids, rows, step, sums)
            self._engines.discriminator.update(judged.rtd_loss_sum * rtd_weight, batch is batches[-1])

    def _run_shared(
        self, batches: Sequence[MaskedBatch], mlm_weight: float, rtd_weight: float, step: int, sums: MetricSums
    ) -> None:
        """ES: E's gradient is dL_MLM/dE + lambda dL_RTD/dE, summed before E moves (arXiv 2111.09543 section 3.2)."""
        for batch in batches:
            layout = batch.layout()
            output = self._generate(batch, layout, step, sums)
            assert output.shared_rows is not None
            rows = output.shared_rows.detach().requires_grad_()
            judged = self._discriminate(batch, layout, output.corrupted_ids, rows, step, sums)
            self._engines.discriminator.update(judged.rtd_loss_sum * rtd_weight, batch is batches[-1])
            assert rows.grad is not None
            from_discriminator = (output.shared_rows * rows.grad).sum()
            self._engines.generator.update(output.mlm_loss_sum * mlm_weight + from_discriminator, batch is batches[-1])

    def _generate(self, batch: MaskedBatch, layout: TokenLayout, step: int, sums: MetricSums) -> GeneratorOutput:
        output: GeneratorOutput = self._engines.generator(
            batch.original_ids,
            layout,
            batch.masked_rows,
            generator_noise(self._config.run.seed, step),
            self._sampling,
            needs_shared_rows=self._sharing == "es",
            masked_ids=batch.masked_ids,
        )
        sums.add_generator(output, batch.num_masked)
        return output

    def _discriminate(
        self,
        batch: MaskedBatch,
        layout: TokenLayout,
        corrupted_ids: Tensor,
        shared_rows: Tensor | None,
        step: int,
        sums: MetricSums,
    ) -> DiscriminatorOutput:
        output: DiscriminatorOutput = self._engines.discriminator(
            corrupted_ids, batch.original_ids, layout, discriminator_noise(self._config.run.seed, step), shared_rows
        )
        sums.add_discriminator(output, layout.live)
        return output

    def _generator_rows(self, corrupted: Sequence[Tensor]) -> Iterator[Tensor | None]:
        """Rows of E_G for each micro-batch, when it is its turn; of all at once where the table is in pieces."""
        if self._sharing == "nes":
            yield from [None] * len(corrupted)
            return
        with self._engines.generator_rows() as look_up:
            if self._engines.zero_stage < 3:
                yield from map(look_up, corrupted)
                return
            rows = deque(map(look_up, corrupted))
        while rows:
            yield rows.popleft()

    def _set_learning_rates(self, step: int, resting_group: str | None) -> None:
        factor = learning_rate_factor(step, self._config.schedule)
        generator_rate, discriminator_rate = peak_learning_rates(self._config.optimizer)
        self._engines.generator.set_learning_rate(generator_rate * factor, resting_group)
        self._engines.discriminator.set_learning_rate(discriminator_rate * factor)
