"""Every ZeRO stage, and any split of a global batch, computes what plain torch does; bf16 and ZeRO-3 resume exactly."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.trainer.checkpoint import list_checkpoints
from disentangled.trainer.launch import find_free_port
from tests.integration.finished_run import differing_names, last_state, launch_run, rows_without_timings
from tests.integration.zero_stages import ENGINES, SHARINGS, run_steps, zero_config
from tests.launching import run_command
from tests.numerics import assert_no_worse_than_eager
from tests.trainer.tiny_run import CPU, build_parts

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class OneRank:
    """The only rank, behind what a step uses of trainer/distributed.Ranks."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    def sum_on_host(self, values: list[int]) -> list[int]:
        return values


@pytest.fixture(scope="module")
def by_ranks(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Number of ranks: what zero_stages.py found, with one rank x 4 micro-batches and two ranks x 2."""
    folder = tmp_path_factory.mktemp("zero")
    found = {}
    for ranks in (1, 2):
        file = folder / f"{ranks}.json"
        finished = run_command(
            sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks), "--master_port",
            str(find_free_port()), "--module", "tests.integration.zero_stages", str(shards), str(file),
        )  # fmt: skip
        assert finished.code == 0, finished
        found[ranks] = json.loads(file.read_text())
    return found


@pytest.fixture(scope="module")
def plain(shards: Path) -> dict[str, dict[torch.dtype, torch.Tensor]]:
    """The same by plain torch: way of sharing, dtype: losses."""
    answers: dict[str, dict[torch.dtype, torch.Tensor]] = {}
    for sharing in SHARINGS:
        for dtype in (torch.float32, torch.float64):
            parts = build_parts(zero_config(shards, sharing))
            parts.generator.to(dtype)
            parts.discriminator.to(dtype)
            losses = run_steps(parts, parts.plain_engines(4), OneRank(), 4)["losses"]
            answers.setdefault(sharing, {})[dtype] = torch.tensor(losses, dtype=dtype)
    return answers


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_stage_computes_what_plain_torch_does(
    by_ranks: dict[int, dict[str, Any]],
    plain: dict[str, dict[torch.dtype, torch.Tensor]],
    ranks: int,
    engine: str,
    sharing: str,
) -> None:
    found = by_ranks[ranks][f"{sharing} {engine}"]
    answers = plain[sharing]
    assert len(found["losses"]) == 22
    assert_no_worse_than_eager(torch.tensor(found["losses"]), answers[torch.float32], answers[torch.float64])
    assert found["without_gradient"] == []


@pytest.mark.parametrize("engine", ["zero2_bf16", "zero3_fp32", "zero3_bf16"])
def test_other_engines_train_and_resume_exactly(shards: Path, tmp_path: Path, engine: str) -> None:
    if engine != "zero2_bf16":
        config: dict[str, Any] = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
        if engine == "zero3_bf16":
            config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
        engine = str(tmp_path / f"{engine}.json")
        Path(engine).write_text(json.dumps(config))
    folder, again = tmp_path / "run", tmp_path / "again"
    options = ("--engine", engine, "checkpoint.every_steps=45")
    finished = launch_run(shards, folder, *options)
    assert finished.code == 0, finished
    rows = rows_without_timings(folder)
    assert rows[-1]["validation_mlm_loss"] < rows[0]["mlm_loss"]
    shutil.copytree(folder, again)
    shutil.rmtree(list_checkpoints(again)[0])
    finished = launch_run(shards, again, *options)
    assert finished.code == 0 and "resuming at step 45" in finished.stdout, finished
    assert differing_names(last_state(again), last_state(folder)) == []
    assert rows_without_timings(again) == rows
