"""Every ZeRO stage, and any split of a global batch, computes what plain torch does; bf16 and ZeRO-3 resume exactly."""

import functools
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.trainer.checkpoint import list_checkpoints
from disentangled.trainer.launch import find_free_port
from tests.integration.finished_run import differing_names, last_state, launch_run, rows_without_timings
from tests.integration.zero_stages import ALGORITHMS, CLIPPINGS, case_config, list_cases, run_steps
from tests.launching import run_command
from tests.numerics import assert_no_worse_than_eager
from tests.trainer.tiny_run import CPU, build_parts

# torch's launcher, which starts in half of the time of DeepSpeed's
RANKS = (sys.executable, "-m", "torch.distributed.run")
# a step's 8 rows in four micro-batches: what fp32 rounding does to that is what ours is allowed twice of
PLAIN_MICRO_SEQUENCES = 2


@dataclass(frozen=True)
class OneRank:
    """The only rank, behind what a step uses of trainer/distributed.Ranks."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU

    def sum_on_host(self, values: list[int]) -> list[int]:
        return values


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model takes twenty times as long with two threads where others use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def plain(shards: Path) -> Callable[[str, str], dict[torch.dtype, torch.Tensor]]:
    """The losses of an algorithm with a clipping by plain torch: dtype: losses."""

    @functools.cache
    def run(algorithm: str, clipping: str) -> dict[torch.dtype, torch.Tensor]:
        answers = {}
        for dtype in (torch.float32, torch.float64):
            parts = build_parts(case_config(shards, algorithm, clipping, PLAIN_MICRO_SEQUENCES))
            parts.generator.to(dtype)
            parts.discriminator.to(dtype)
            answers[dtype] = torch.tensor(run_steps(parts, parts.plain_engines(), OneRank()), dtype=dtype)
        return answers

    return run


def run_part(part: str, num_ranks: int, shards: Path, file: Path) -> dict[str, Any]:
    """What zero_stages.py finds, by case; one launch."""
    finished = run_command(
        *RANKS, "--nproc-per-node", str(num_ranks), "--master-port", str(find_free_port()), "-m",
        "tests.integration.zero_stages", part, str(shards), str(file), seconds=3600,
    )  # fmt: skip
    assert finished.code == 0, finished
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def check_part(
    part: str, num_ranks: int, shards: Path, file: Path, plain: Callable[[str, str], dict[torch.dtype, torch.Tensor]]
) -> None:
    """Every case agrees with plain torch, no parameter went without a gradient, and nothing makes the host wait."""
    found = run_part(part, num_ranks, shards, file)
    # ZeRO-3 would apply the first step's gradient again
    assert "no gradient reached mask_decoder.position_embeddings.weight:" in found.pop("dead parameter")
    cases = list_cases(part, num_ranks)
    assert {str(case) for case in cases} == found.keys()
    faults = []
    for case in cases:
        answers, losses = plain(case.algorithm, case.clipping), torch.tensor(found[str(case)]["losses"])
        assert len(losses) == 22
        try:
            assert_no_worse_than_eager(losses, answers[torch.float32], answers[torch.float64], str(case))
        except AssertionError as error:
            faults.append(str(error))
        if without := found[str(case)]["without_gradient"]:
            faults.append(f"{case}: no gradient for {without}")
        # stable_adamw takes no flag from the device, so whether to update is asked on the host (decision 13)
        if (waits := found[str(case)]["waits"]) and case.algorithm != "stable":
            faults.append(f"{case}: the host waits in {waits}")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_stages_compute_what_plain_torch_does(
    shards: Path, tmp_path: Path, plain: Callable[[str, str], dict[torch.dtype, torch.Tensor]], num_ranks: int
) -> None:
    check_part("fast", num_ranks, shards, tmp_path / "found.json", plain)


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2, 4])
def test_any_algorithm_clipping_and_split_computes_what_plain_torch_does(
    shards: Path, tmp_path: Path, plain: Callable[[str, str], dict[torch.dtype, torch.Tensor]], num_ranks: int
) -> None:
    check_part("all", num_ranks, shards, tmp_path / "found.json", plain)


@pytest.mark.slow
def test_cases_are_told_apart_by_their_losses(
    plain: Callable[[str, str], dict[torch.dtype, torch.Tensor]],
) -> None:
    # else the comparisons above would pass whatever was trained
    names = [name for name in ALGORITHMS if name != "recomputed"]  # that one is gdes
    answers = {(name, clipping): plain(name, clipping)[torch.float64] for name in names for clipping in CLIPPINGS}
    for (one, losses), (other, others) in itertools.combinations(answers.items(), 2):
        assert float((losses - others).abs().max()) > 1e-4, (one, other)


@pytest.mark.slow
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
