"""Where a run's numbers go: the console, metrics.jsonl, TensorBoard and Weights & Biases.

What: one row, four places. metrics.jsonl holds each step once: a resumed run drops the rows after its checkpoint first.
W&B (`log.wandb = true`) is an extra; its own variables (WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, ...) say where to.
Used by: trainer/assemble.py, trainer/loop.py, trainer/report.py, trainer/demo.py. Tested by
tests/trainer/test_metric_log.py.
Not here: what is measured (trainer/metrics.py, trainer/speedometer.py); the progress bar (trainer/progress.py).
"""

import contextlib
import importlib.util
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from disentangled.trainer.command_line import say

METRICS_FILE = "metrics.jsonl"
WANDB_ID_FILE = "wandb_id"
WANDB_PROJECT = "disentangled"  # where WANDB_PROJECT does not name another


class MetricLog:
    """Writes rows; made on the first rank only.

    Args:
        directory: the run's folder.
        first_step: updates done before; rows of later steps are dropped.
        wandb_config: the run's config where W&B is wanted.
    """

    def __init__(
        self,
        directory: Path,
        first_step: int,
        total_steps: int,
        tensorboard: bool,
        wandb_config: dict[str, Any] | None = None,
    ) -> None:
        self._total_steps = total_steps
        path = directory / METRICS_FILE
        self.kept_rows = [row for row in read_rows(path) if row["step"] <= first_step]
        temporary = path.with_name(path.name + ".tmp")  # a resumed run repeats the steps after its checkpoint
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.kept_rows), encoding="utf-8")
        temporary.rename(path)
        self._file = path.open("ab", buffering=0)
        self._unwritten = b""
        self._tensorboard: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # importing it takes seconds: only where it is wanted

            self._tensorboard = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step + 1)
        self._wandb = None if wandb_config is None else start_wandb(directory, wandb_config)

    def write(self, row: dict[str, float]) -> None:
        """Write one row; `step` is among its keys. On a full disk lines wait for room, and TensorBoard ends."""
        self._unwritten += (json.dumps(row) + "\n").encode()
        try:
            self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            warn(row, f"{METRICS_FILE} waits for room ({error})")
        try:
            for name, value in row.items() if self._tensorboard is not None else ():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, int(row["step"]))
        except OSError as error:
            warn(row, f"TensorBoard gets no more of this launch ({error})")
            self._tensorboard = None
        if self._wandb is not None:
            self._wandb.log(row)
        say(console_line(row, self._total_steps))

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def warn(row: dict[str, float], text: str) -> None:
    """Say on stderr what a row's step did not leave behind."""
    with contextlib.suppress(OSError):  # a terminal that is gone
        print(f"warning: step {int(row['step'])}: {text}", file=sys.stderr, flush=True)


def check_wandb(is_wanted: bool) -> None:
    """Raise ValueError where W&B is wanted and not installed."""
    if not is_wanted:
        return
    found = importlib.util.find_spec("wandb")
    if found is None or found.origin is None:  # no origin: merely a folder `wandb`, as W&B itself leaves behind
        raise ValueError(
            "log.wandb is true, but the package wandb is not installed: pip install 'disentangled[wandb]', or set "
            "log.wandb=false"
        )


def start_wandb(directory: Path, config: dict[str, Any]) -> Any:
    """Begin or continue the run's one W&B run, whose id is kept in the run's folder."""
    import wandb  # an extra, see check_wandb

    id_file = directory / WANDB_ID_FILE
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(8), encoding="ascii")
    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
        name=os.environ.get("WANDB_NAME", directory.resolve().name),
        id=id_file.read_text(encoding="ascii"),
        resume="allow",
        dir=str(directory),
        config=config,
    )
    # our own steps as the axis: W&B's only grow, and would drop the steps that a resumed run repeats
    run.define_metric("*", step_metric="step")
    return run


def read_rows(path: Path) -> list[dict[str, float]]:
    """All whole rows of a metrics.jsonl; a line that was cut short is passed over."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows


def console_line(row: dict[str, float], total_steps: int) -> str:
    """One row as a line of at most 100 characters."""
    step = f"step {int(row['step']):>{len(str(total_steps))}}/{total_steps}"
    if "validation_mlm_loss" in row:
        mlm = f"mlm {row['validation_mlm_loss']:.3f} nats, accuracy {row['validation_mlm_accuracy']:.3f}"
        if "validation_rtd_loss" not in row:
            return f"{step}  held out: {mlm}"
        return f"{step}  held out: {mlm}  rtd {row['validation_rtd_loss']:.3f}, auc {row['validation_rtd_auc']:.3f}"
    rate = f"{row['generator_learning_rate']:.1e}".replace("e-0", "e-")
    if "model_flops_utilization" in row:
        use = f"{row['model_flops_utilization']:.1%} MFU"
    else:
        use = f"{scale(row['achieved_tflops'] * 1e12)} FLOP/s"
    rtd = f"rtd {row['rtd_loss']:.3f} auc {row['rtd_auc']:.3f}" if "rtd_loss" in row else "generator alone"
    return (
        f"{step}  mlm {row['mlm_loss']:.3f}  {rtd}  "
        f"lr {rate}  {scale(row['tokens_per_second'])} tok/s {use}  {clock(row['remaining_seconds'])} left"
    )


def scale(value: float) -> str:
    """Three digits and a prefix: 12300 gives 12.3k."""
    prefixes = ["", "k", "M", "G", "T", "P"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}{prefixes[0]}"


def clock(seconds: float) -> str:
    """Minutes and seconds, hours and minutes, or days: 3:07, 2h05, 12d."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{round(hours / 24)}d"
    return f"{hours}h{minutes:02}" if hours else f"{minutes}:{rest:02}"
