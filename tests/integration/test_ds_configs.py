"""Each shipped ds_config trains on two processes, with weights, moments, sums and messages in fp32, or is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.accelerator import get_accelerator

from disentangled.trainer.ds_config import load_ds_config, precision_of
from disentangled.trainer.launch import find_free_port
from tests.integration.ds_configs import BF16, FP32, MICRO_SEQUENCES, list_ds_configs
from tests.integration.test_zero_stages import RANKS, OneRank, one_thread  # noqa: F401, a fixture for every test
from tests.integration.zero_stages import NUM_STEPS, case_config, run_steps
from tests.launching import run_command
from tests.trainer.tiny_run import SMALLEST, build_parts

# each logit, of size 1, carries the rounding of some ten layers' outputs
BF16_ROUNDING = 10 * torch.finfo(torch.bfloat16).eps


@pytest.fixture(scope="module")
def found(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name of a ds_config: what ds_configs.py found on two ranks."""
    file = tmp_path_factory.mktemp("ds_configs") / "found.json"
    finished = run_command(
        *RANKS, "--nproc-per-node", "2", "--master-port", str(find_free_port()), "-m", "tests.integration.ds_configs",
        str(shards), str(file), seconds=1200,
    )  # fmt: skip
    assert finished.code == 0, finished
    results: dict[str, Any] = json.loads(file.read_text())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("name", list_ds_configs())
def test_ds_config_trains_on_two_processes(found: dict[str, Any], shards: Path, name: str) -> None:
    parts = build_parts(case_config(shards, "gdes", "clipped", MICRO_SEQUENCES))
    expected = torch.tensor(run_steps(parts, parts.plain_engines(), OneRank()))
    losses = torch.tensor(found[name]["losses"])
    is_fp32 = precision_of(load_ds_config(name)) == "fp32"
    # gradient norms scale with lambda: relative to their size
    assert float(((losses - expected).abs() / expected.abs().clamp(min=1)).max()) < (1e-5 if is_fp32 else BF16_ROUNDING)
    assert found[name]["updates"] == [NUM_STEPS, NUM_STEPS]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_ds_configs())
def test_step_waits_for_no_device_unless_the_optimizer_is_offloaded(found: dict[str, Any], name: str) -> None:
    is_offloaded = "offload_optimizer" in load_ds_config(name)["zero_optimization"]
    assert bool(found[name]["waits"]) == is_offloaded, found[name]["waits"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list_ds_configs())
def test_update_whose_gradient_is_not_finite_leaves_no_trace(found: dict[str, Any], name: str) -> None:
    bad, good = found[name]["steps"]["nan"], found[name]["steps"]["good"]
    assert bad == {"refused": "its gradient is not finite", "changed": [], "skipped": 1}
    assert good["refused"] == "" and good["skipped"] == 1 and len(good["changed"]) > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", list_ds_configs())
def test_what_must_stay_fp32_does(found: dict[str, Any], name: str) -> None:
    weights = BF16 if precision_of(load_ds_config(name)) == "bf16" else FP32
    for types in found[name]["types"]:
        assert types.pop("weights") == [weights]
        assert set(map(tuple, types.values())) == {(FP32,)}, types


@pytest.mark.skipif(bool(get_accelerator().is_fp16_supported()), reason="this accelerator has fp16")
def test_fp16_where_there_is_none_is_refused_in_one_line(shards: Path, tmp_path: Path) -> None:
    finished = run_command(
        sys.executable, "-m", "disentangled.trainer.train", "--recipe", "tiny", "--engine", "zero2_fp16", *SMALLEST,
        f"data.shards={shards}", f"run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert finished.code == 2, finished
    said = [line for line in finished.stderr.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and "fp16, which the accelerator here (cpu) cannot: use an --engine of bf16" in said[0]
    assert not (tmp_path / "run").exists()
