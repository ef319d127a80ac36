"""Bytes of a step against what two gloo ranks hand to torch.distributed; times by hand."""

import json
import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from disentangled.trainer.network_plan import Sizes, count_parameters, main, sent_bytes, step_traffic
from disentangled.trainer.run_config import load_run_config
from tests.launching import LAUNCH_SECONDS, ROOT
from tests.trainer.tiny_run import SMALLEST

ENGINES: dict[str, dict[str, Any]] = {
    "stage 0": {"zero_optimization": {"stage": 0}},
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 2": {"zero_optimization": {"stage": 2}},
    "stage 2 in bf16": {"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}},
    "stage 3": {"zero_optimization": {"stage": 3}},
}
# the shards' vocabulary is 576: one that does not hang on it
OVERRIDES = (*SMALLEST, "model.vocab_size=1024", "batch.micro_sequences=2")  # 2 ranks: 2 micro-batches a step
# padding of buffers to whole blocks, norms, and small parameters that ZeRO-3 gathers once more
SLACK = 0.02


def trace_ranks(num_ranks: int, shards: Path, folder: Path, ds_config: dict[str, Any], *overrides: str) -> Any:
    """What the first rank of traced_run.py prints."""
    engine = folder / "engine.json"
    engine.write_text(json.dumps(ds_config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "WORLD_SIZE": str(num_ranks), "LOCAL_SIZE": str(num_ranks), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    environment.pop("TRITON_INTERPRET", None)
    command = [
        sys.executable, "-m", "tests.trainer.traced_run", "--recipe", "tiny", "--engine", str(engine),
        f"data.shards={shards}", f"run.dir={folder / 'run'}", "log.tensorboard=false", "data.workers=0", *overrides,
    ]  # fmt: skip
    ranks = [
        subprocess.Popen(command, cwd=ROOT, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                         stdout=subprocess.PIPE, stderr=(folder / f"stderr{rank}").open("w"), text=True)
        for rank in range(num_ranks)
    ]  # fmt: skip
    try:
        outputs = [rank.communicate(timeout=LAUNCH_SECONDS)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), (folder / "stderr0").read_text()
    return json.loads(next(line for line in outputs[0].splitlines() if line.startswith("{")))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_bytes_are_those_that_two_ranks_hand_over(name: str, shards: Path, tmp_path: Path) -> None:
    config = load_run_config("tiny", OVERRIDES)
    planned = step_traffic(count_parameters(config), config, ENGINES[name], accumulation=2)
    traced = trace_ranks(2, shards, tmp_path, ENGINES[name], *OVERRIDES)["traffic"]
    kinds = {"all_gather_into_tensor": "all_gather", "reduce_scatter_tensor": "reduce_scatter"}
    seen: Counter[str] = Counter()
    for kind, size in traced.items():
        seen[kinds.get(kind, kind)] += size
    for kind in seen.keys() | planned.keys():
        assert seen[kind] == pytest.approx(planned[kind], rel=SLACK, abs=1000), (name, seen, planned)


def test_large_models_of_stage_3_are_gathered_twice() -> None:
    config = load_run_config("tiny", OVERRIDES)
    sizes = Sizes(generator=(50, 40, 10), discriminator=(300,), shared_table=50)
    small = {"stage3_max_live_parameters": 200, "stage3_param_persistence_threshold": 10}
    engine = {"zero_optimization": {"stage": 3} | small}
    assert step_traffic(sizes, config, engine, 3) == {
        "reduce_scatter": 3 * 400 * 4,
        "all_gather": 3 * 90 * 4 + 10 * 4 + 3 * 2 * 300 * 4 + 50 * 4,
    }


def test_ring_sends_an_all_reduce_twice() -> None:
    assert sent_bytes(Counter(all_reduce=800, all_gather=400, reduce_scatter=80), 8) == (2 * 800 + 400 + 80) * 7 / 8
    assert sent_bytes(Counter(all_reduce=800), 1) == 0


def test_parameters_are_those_of_the_models_that_are_built() -> None:
    sizes = count_parameters(load_run_config("base"))
    # 12 layers of 768 and a table of 128,100: DeBERTaV3-base has 184 M (its model card: 86 M without 98 M of the table)
    assert sizes.shared_table == 128_100 * 768
    assert sum(sizes.discriminator) == pytest.approx(184e6, rel=0.01)
    with pytest.raises(ValueError, match=r"add model\.vocab_size=N"):
        count_parameters(load_run_config("tiny"))


def test_table_has_a_line_for_each_number_of_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--recipe", "tiny", "--engine", "zero2_bf16", *OVERRIDES, "batch.global_sequences=64",
               "--ranks", "8", "16", "--device", "NVIDIA A100-SXM4-80GB", "--stages", "1", "3"]  # fmt: skip
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    micro_batches = {"8": "4", "16": "2"}
    expected = [[stage, ranks, number, "of", "2"] for stage in "13" for ranks, number in micro_batches.items()]
    assert [line.split()[:5] for line in lines[1:]] == expected
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "NVIDIA X1"], "--device 'NVIDIA X1' has no known peak"),
        (["--ranks", "7"], "batch.global_sequences 8 is not a multiple"),
        (["model.vocab_size=0"], "add model.vocab_size=N"),
    ],
)
def test_mistake_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(["--recipe", "tiny", "--engine", "fp32_cpu", *OVERRIDES, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
