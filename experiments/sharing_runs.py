"""The runs of experiments/embedding_sharing.py: one for each way of sharing and seed, in a time that is set.

What: each run is `disentangled.trainer.launch`, as a user would start it, with the recipe's values but for what tells
the ways apart. When time is up, the run under way is asked to stop, saves, and goes on in the next call. What a run's
checkpoints tell (cosines, gradients) is measured once it is done, by the commands that do it for any run.
Used by: experiments/embedding_sharing.py. Tested by tests/experiments/test_embedding_sharing.py.
Not here: fine-tuning, tables and pictures.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from disentangled.trainer.checkpoint import list_checkpoints, step_of
from disentangled.trainer.interrupt import EXIT_SAVED
from disentangled.trainer.run_config import RunConfig, load_run_config
from disentangled.trainer.run_folder import COSINE_FILE
from experiments.gradient_conflict import CONFLICT_FILE

VARIANTS = ("es", "nes", "gdes", "mlm")


class RunFailed(Exception):
    """A command of a run ended badly; it has said why itself."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        variant: a way of sharing embeddings, or mlm: plain masked language modelling of an encoder as deep.
        folder: its run.dir; `exported` is where its model goes.
    """

    variant: str
    seed: int
    folder: Path

    @property
    def exported(self) -> Path:
        """The Hugging Face folder."""
        return self.folder.with_name(f"{self.folder.name}_model")

    def overrides(self, plan: "Plan") -> list[str]:
        """What this run changes in the plan's recipe."""
        if self.variant != "mlm":
            return [f"model.embedding_sharing={self.variant}", f"run.seed={self.seed}"]
        depth = plan.config().model.num_hidden_layers
        return [
            "optimizer.update=mlm",
            f"model.generator_num_hidden_layers={depth}",  # the model that is kept is as deep as a discriminator
            "model.num_hidden_layers=1",  # of the discriminator, which rests
            f"run.seed={self.seed}",
        ]


@dataclass(frozen=True)
class Plan:
    """What all runs share."""

    recipe: str
    engine: str
    num_processes: int
    shards: Path
    overrides: tuple[str, ...]

    def config(self) -> RunConfig:
        """Of all runs, but for what each changes.

        Raises:
            ValueError: a recipe or an override that cannot be read.
        """
        return load_run_config(self.recipe, self.overrides)


def plan_runs(folder: Path, variants: Sequence[str], num_seeds: int) -> list[Run]:
    """All runs, seed by seed: when time is up, the ways have been compared on as many seeds as there was time for."""
    return [
        Run(variant, seed, folder / "runs" / f"{variant}_{seed}")
        for seed in range(1, num_seeds + 1)
        for variant in variants
    ]


def is_trained(run: Run, plan: Plan) -> bool:
    """Whether its last checkpoint is there."""
    checkpoints = list_checkpoints(run.folder)
    return bool(checkpoints) and step_of(checkpoints[0]) >= plan.config().schedule.total_steps


def train(run: Run, plan: Plan, deadline: float) -> bool:
    """Train, or go on, until done or `deadline` (time.monotonic); whether it is done. Past it nothing begins.

    Raises:
        RunFailed: the launch ended badly.
    """
    if time.monotonic() > deadline:
        return False
    command = [
        sys.executable, "-m", "disentangled.trainer.launch", "--num_accelerators", str(plan.num_processes), "--",
        "--recipe", plan.recipe, "--engine", plan.engine, f"data.shards={plan.shards}", f"run.dir={run.folder}",
        *plan.overrides, *run.overrides(plan),
    ]  # fmt: skip
    child = subprocess.Popen(command, start_new_session=True)  # a Ctrl-C reaches it through this process alone
    try:
        code = child.wait(max(0.0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.terminate()
        code = child.wait()
    if code not in (0, EXIT_SAVED, -signal.SIGTERM):  # the last: it was told to stop before it could listen
        raise RunFailed(f"{run.folder.name} ended with exit code {code}")
    return code == 0


def measure(run: Run) -> None:
    """Cosines of its embeddings, its two gradients, and its export, where they are not there yet.

    Raises:
        RunFailed: one of the commands ended badly.
    """
    for command, made in measurements(run):
        if not made.exists() and subprocess.run([sys.executable, "-m", *command]).returncode:
            raise RunFailed(f"{' '.join(command)} ended badly")


def measurements(run: Run) -> Iterator[tuple[list[str], Path]]:
    """Commands, and what each makes."""
    folder = str(run.folder)
    if run.variant != "mlm":
        yield ["disentangled.trainer.embedding_cosine", "--run", folder], run.folder / COSINE_FILE
        yield ["experiments.gradient_conflict", "--run", folder], run.folder / CONFLICT_FILE
    yield ["disentangled.trainer.export", "--run", folder, "--output", str(run.exported)], run.exported
