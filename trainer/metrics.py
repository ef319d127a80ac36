"""What a run reports: sums on the device, numbers on log steps, lines in three places.

What: a step adds to `MetricSums` without reading anything back. On a log step the sums are reduced over ranks, read
once, and turned into means over the steps since the last line. A discriminator that calls everything original is right
on nine tokens of ten, so accuracy is not reported: AUC (from a histogram of fixed bins) and balanced accuracy are.
Used by: trainer/rtd_step.py, trainer/loop.py, trainer/evaluate.py. Tested by tests/trainer/test_metrics.py.
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.generator import GeneratorOutput
from disentangled.trainer.command_line import say

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
        """Add one generator pass."""
        zero = torch.zeros((), dtype=torch.float64, device=self._sums.device)
        self._sums[:4] += torch.stack(
            [
                _round_loss(output.mlm_loss_sum),
                zero + num_masked,
                output.num_correct.double(),
                output.num_sampled_correct.double(),
            ]
        )

    def add_discriminator(self, output: DiscriminatorOutput, live: Tensor) -> None:
        """Add one discriminator pass; live [T] bool."""
        self._sums[4:6] += torch.stack([_round_loss(output.rtd_loss_sum), live.sum().double()])
        bins = (output.logits.detach().sigmoid() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        place = len(SCALARS) + bins + NUM_BINS * output.is_replaced.long()
        self._sums.index_add_(0, place, live.double())

    def total(self) -> Tensor:
        """The sums over all ranks, for a checkpoint; called by every rank."""
        total = self._sums.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        return total

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


class MetricLog:
    """Writes one row to the console, to metrics.jsonl and to TensorBoard; made on the first rank only."""

    def __init__(self, directory: Path, first_step: int, total_steps: int, tensorboard: bool) -> None:
        self._total_steps = total_steps
        path = directory / "metrics.jsonl"
        kept = [row for row in read_rows(path) if row["step"] <= first_step]
        temporary = path.with_name(path.name + ".tmp")  # a resumed run repeats the steps after its checkpoint
        temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("a", encoding="utf-8", buffering=1)
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # importing it takes seconds: only where it is wanted

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)

    def write(self, row: dict[str, float]) -> None:
        """Write one row; `step` is among its keys."""
        self._file.write(json.dumps(row) + "\n")
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, int(row["step"]))
        say(console_line(row, self._total_steps))

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read_rows(path: Path) -> list[dict[str, float]]:
    """All whole rows of a metrics.jsonl; a last line that was cut short is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def console_line(row: dict[str, float], total_steps: int) -> str:
    """One row as a line of at most 100 characters."""
    step = f"step {int(row['step']):>{len(str(total_steps))}}/{total_steps}"
    if "validation_mlm_loss" in row:
        return (
            f"{step}  held out: mlm {row['validation_mlm_loss']:.3f} nats, accuracy "
            f"{row['validation_mlm_accuracy']:.3f}  rtd {row['validation_rtd_loss']:.3f}, auc "
            f"{row['validation_rtd_auc']:.3f}"
        )
    rate = f"{row['generator_learning_rate']:.1e}".replace("e-0", "e-")
    remaining = row["seconds_per_step"] * (total_steps - row["step"])
    rtd = f"rtd {row['rtd_loss']:.3f} auc {row['rtd_auc']:.3f}" if "rtd_loss" in row else "generator alone"
    return (
        f"{step}  mlm {row['mlm_loss']:.3f}  {rtd}  "
        f"lr {rate}  {_scale(row['tokens_per_second'])} tok/s {_scale(row['achieved_tflops'] * 1e12)} FLOP/s  "
        f"{_clock(remaining)} left"
    )


def _scale(value: float) -> str:
    """Three digits and a prefix: 12300 gives 12.3k."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{prefixes[0]}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{round(hours / 24)}d"
    return f"{hours}h{minutes:02}" if hours else f"{minutes}:{rest:02}"
