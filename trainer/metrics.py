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

NUM_BINS = 2048  # of the discriminator's probability: an AUC to within 1e-3 of the exact one (test_metrics)
SCALARS = (
    "mlm_loss_sum",
    "num_masked",
    "num_correct",
    "num_sampled_correct",
    "rtd_loss_sum",
    "num_live",
)


class MetricSums:
    """Sums since the last log line: scalars [6] and two histograms [NUM_BINS], fp64, on the device."""

    def __init__(self, device: torch.device) -> None:
        self._sums = torch.zeros(len(SCALARS) + 2 * NUM_BINS, dtype=torch.float64, device=device)

    def add_generator(self, output: GeneratorOutput, num_masked: int) -> None:
        """Add one generator pass."""
        zero = torch.zeros((), dtype=torch.float64, device=self._sums.device)
        self._sums[:4] += torch.stack(
            [
                output.mlm_loss_sum.detach().double(),
                zero + num_masked,
                output.num_correct.double(),
                output.num_sampled_correct.double(),
            ]
        )

    def add_discriminator(self, output: DiscriminatorOutput, live: Tensor) -> None:
        """Add one discriminator pass; live [T] bool."""
        self._sums[4:6] += torch.stack([output.rtd_loss_sum.detach().double(), live.sum().double()])
        bins = (output.logits.detach().sigmoid() * NUM_BINS).long().clamp(0, NUM_BINS - 1)
        place = len(SCALARS) + bins + NUM_BINS * output.is_replaced.long()
        self._sums.index_add_(0, place, live.double())

    def to_list(self) -> list[float]:
        """The sums as plain numbers, for a checkpoint."""
        return self._sums.tolist()

    def restore(self, values: list[float]) -> None:
        """Take sums back from a checkpoint."""
        self._sums.copy_(torch.tensor(values, dtype=torch.float64))

    def take(self) -> dict[str, float]:
        """Means over everything added on all ranks since the last call; sets the sums to zero."""
        total = self._sums.clone()
        if dist.is_initialized():
            dist.all_reduce(total)
        self._sums.zero_()
        values = total.cpu()
        sums = dict(zip(SCALARS, values.tolist(), strict=False))
        original, replaced = values[len(SCALARS) :].view(2, NUM_BINS)
        return summarize(sums, original, replaced)


def summarize(sums: dict[str, float], original: Tensor, replaced: Tensor) -> dict[str, float]:
    """Means of the sums. original, replaced: [NUM_BINS] counts by the probability of being replaced."""
    masked, live = max(1.0, sums["num_masked"]), max(1.0, sums["num_live"])
    return {
        "mlm_loss": sums["mlm_loss_sum"] / masked,
        "mlm_accuracy": sums["num_correct"] / masked,
        "sampled_accuracy": sums["num_sampled_correct"] / masked,
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
        self._file = path.open("w", encoding="utf-8", buffering=1)
        for row in kept:  # a resumed run repeats the steps after its checkpoint: their old rows go
            self._file.write(json.dumps(row) + "\n")
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
        print(console_line(row, self._total_steps), flush=True)

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
    remaining = row["seconds_per_step"] * (total_steps - row["step"])
    return (
        f"{step}  mlm {row['mlm_loss']:.3f}  rtd {row['rtd_loss']:.3f} auc {row['rtd_auc']:.3f}  "
        f"lr {row['generator_learning_rate']:.1e}  {row['tokens_per_second'] / 1e3:.1f}k tok/s  "
        f"{row['achieved_tflops']:.3f} TFLOP/s  {_clock(remaining)} left"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
