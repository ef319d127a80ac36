"""What a run measures of both models: sums on the device, numbers on log steps.

What: a step adds to `MetricSums` without reading anything back. On a log step the sums are reduced over ranks, read
once, and turned into means over the steps since the last line. A discriminator that calls everything original is right
on nine tokens of ten, so accuracy is not reported: AUC (from a histogram of fixed bins) and balanced accuracy are.
Used by: trainer/rtd_step.py, trainer/loop.py, trainer/evaluate.py. Tested by tests/trainer/test_metrics.py.
Not here: where the numbers are written (trainer/metric_log.py), rates and memory (trainer/speedometer.py).
"""

import torch
import torch.distributed as dist
from torch import Tensor

from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.generator import GeneratorOutput

NUM_BINS = 2048  # of the discriminator's probability: an AUC to within 1e-3 of the exact one (test_metrics)
SCALARS = (
    "mlm_loss_sum",
    "num_masked",
    "num_correct",
    "num_sampled_correct",
    "rtd_loss_sum",
    "num_live",
)
# Losses are summed in steps of 2^-20 nats: such sums are exact in fp64 up to 2^33, so neither the number of ranks nor a
# resume between two log lines, which adds in another order, changes them.
LOSS_STEPS_PER_NAT = 1 << 20


class MetricSums:
    """Sums since the last log line: scalars [6] and two histograms [NUM_BINS], fp64, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(SCALARS) + 2 * NUM_BINS, dtype=torch.float64, device=device)

    def add_generator(self, output: GeneratorOutput, num_masked: int) -> None:
        """Add one generator pass; one whose loss is not finite counts nothing, its update is refused."""
        zero = torch.zeros((), dtype=torch.float64, device=self._sums.device)
        values = torch.stack(
            [
                _round_loss(output.mlm_loss_sum),
                zero + num_masked,
                output.num_correct.double(),
                output.num_sampled_correct.double(),
            ]
        )
        self._sums[:4] += torch.where(output.mlm_loss_sum.detach().isfinite(), values, 0.0)

    def add_discriminator(self, output: DiscriminatorOutput, live: Tensor) -> None:
        """Add one discriminator pass; live [T] bool. One whose loss is not finite counts nothing."""
        counted = live.double() * output.rtd_loss_sum.detach().isfinite()
        loss = _round_loss(output.rtd_loss_sum).nan_to_num(0.0, 0.0, 0.0)
        self._sums[4:6] += torch.stack([loss, counted.sum()])
        bins = (output.logits.detach().sigmoid() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        place = len(SCALARS) + bins + NUM_BINS * output.is_replaced.long()
        self._sums.index_add_(0, place, counted)

    def total(self) -> Tensor:
        """The sums over all ranks, for a checkpoint; called by every rank."""
        total = self._sums.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total

    def clear(self) -> None:
        """Begin anew."""
        self._sums.zero_()

    def restore(self, values: list[float]) -> None:
        """Take a checkpoint's sums back; called by one rank, for all."""
        self._sums.copy_(torch.tensor(values, dtype=torch.float64))

    def take(self) -> dict[str, float]:
        """Means over everything added on all ranks since the last call; sets the sums to zero."""
        values = self.total().cpu()
        self._sums.zero_()
        sums = dict(zip(SCALARS, values.tolist(), strict=False))
        original, replaced = values[len(SCALARS) :].view(2, NUM_BINS)
        return summarize(sums, original, replaced)


def _round_loss(loss_sum: Tensor) -> Tensor:
    return (loss_sum.detach().double() * LOSS_STEPS_PER_NAT).round() / LOSS_STEPS_PER_NAT


def summarize(sums: dict[str, float], original: Tensor, replaced: Tensor) -> dict[str, float]:
    """Means of the sums, without the discriminator's where it has not run.

    Args:
        original, replaced: [NUM_BINS] counts by the probability of being replaced.
    """
    masked, live = max(1.0, sums["num_masked"]), sums["num_live"]
    means = {
        "mlm_loss": sums["mlm_loss_sum"] / masked,
        "mlm_accuracy": sums["num_correct"] / masked,
        "sampled_accuracy": sums["num_sampled_correct"] / masked,
    }
    if live == 0:
        return means
    return means | {
        "replaced_fraction": float(replaced.sum()) / live,
        "rtd_loss": sums["rtd_loss_sum"] / live,
        "rtd_auc": area_under_curve(original, replaced),
        "rtd_balanced_accuracy": balanced_accuracy(original, replaced),
    }


def area_under_curve(original: Tensor, replaced: Tensor) -> float:
    """Probability that a replaced token scores above an original one, ties half; 0.5 where a class is empty."""
    pairs = float(original.sum()) * float(replaced.sum())
    if pairs == 0:
        return 0.5
    below = original.cumsum(0) - original
    return float((replaced * (below + original / 2)).sum()) / pairs


def balanced_accuracy(original: Tensor, replaced: Tensor) -> float:
    """Mean of both classes' recall at probability 1/2; 0.5 where a class is empty."""
    if float(original.sum()) == 0 or float(replaced.sum()) == 0:
        return 0.5
    half = original.numel() // 2
    return float(original[:half].sum() / original.sum() + replaced[half:].sum() / replaced.sum()) / 2
