"""Launchers that number ranks in their own way, and the command lines that DeepSpeed makes of ours for them."""

import sys
from pathlib import Path
from typing import Any

import pytest
from deepspeed.launcher import multinode_runner
from deepspeed.launcher.runner import encode_world_info, fetch_hostfile, parse_args

from disentangled.trainer.foreign_launchers import first_host, meeting_point, rank_variables
from disentangled.trainer.launch import TRAIN_MODULE, build_command

TRAINER = ["--recipe", "tiny", "--engine", "fp32_cpu", "data.shards=shards", "run.dir=run"]


@pytest.fixture
def hostfile(tmp_path: Path) -> str:
    path = tmp_path / "hostfile"
    path.write_text("# all nodes\n\nnode1 slots=8\nnode2 slots=8\n")
    return str(path)


def command_of(runner: str, *options: str) -> list[str]:
    """The command that DeepSpeed runs for our launcher's command line."""
    ours = build_command([*options], TRAINER, "launch-id")
    arguments = parse_args(ours[3:])
    pool = fetch_hostfile(arguments.hostfile)
    active = {host: list(range(slots)) for host, slots in pool.items()}
    kind = getattr(multinode_runner, runner)
    made = kind(arguments, encode_world_info(active), *([] if runner == "PDSHRunner" else [pool]))
    command: Any = made.get_cmd({}, active)
    return list(command[0]) if runner == "PDSHRunner" else list(command)


def test_slurm_runs_the_module_on_every_slot(hostfile: str) -> None:
    command = command_of("SlurmRunner", "--launcher", "slurm", "--hostfile", hostfile)
    assert command[:3] == ["srun", "-n", "16"]
    place = command.index(sys.executable)
    assert command[place:] == [sys.executable, "-u", "-m", TRAIN_MODULE, "--launch-id", "launch-id", *TRAINER]


def test_openmpi_runs_the_module_and_hands_on_where_the_first_rank_is(hostfile: str) -> None:
    options = ("--launcher=openmpi", "--hostfile", hostfile, "--launcher_args", "--mca btl_tcp_if_include ib0")
    command = command_of("OpenMPIRunner", *options)
    assert command[:5] == ["mpirun", "-n", "16", "-hostfile", hostfile]
    words = " ".join(command)
    assert "--mca btl_tcp_if_include ib0 -x MASTER_ADDR -x MASTER_PORT" in words
    assert words.endswith(f"-m {TRAIN_MODULE} --launch-id launch-id {' '.join(TRAINER)}")
    assert meeting_point(options) == {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}


def test_pdsh_runs_the_module_and_needs_nothing_of_ours(hostfile: str) -> None:
    command = command_of("PDSHRunner", "--hostfile", hostfile, "--master_addr", "node1")
    assert command[:6] == ["pdsh", "-S", "-f", "1024", "-w", "node1,node2"]
    assert "--module" in command
    assert command[command.index(TRAIN_MODULE) :] == [TRAIN_MODULE, "--launch-id", "launch-id", *TRAINER]
    assert meeting_point(["--hostfile", hostfile]) == {}


def test_meeting_point_is_as_told_or_the_first_host(hostfile: str) -> None:
    told = ["--launcher", "slurm", "--hostfile", hostfile, "--master_addr", "10.0.0.7", "--master_port=4000"]
    assert meeting_point(told) == {"MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "4000"}
    assert first_host(Path(hostfile)) == "node1"
    with pytest.raises(ValueError, match="--launcher slurm needs --hostfile FILE with a host, or --master_addr HOST"):
        meeting_point(["--launcher", "slurm"])


def test_rank_takes_its_numbers_from_mpi_or_slurm() -> None:
    meeting = {"MASTER_ADDR": "node1"}
    mpi = {"OMPI_COMM_WORLD_RANK": "9", "OMPI_COMM_WORLD_SIZE": "16", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
           "OMPI_COMM_WORLD_LOCAL_SIZE": "8", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}  # fmt: skip
    expected = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_SIZE": "8"}
    assert rank_variables(meeting | mpi) == expected
    slurm = {"SLURM_PROCID": "9", "SLURM_NTASKS": "16", "SLURM_LOCALID": "1"}
    assert rank_variables(meeting | slurm) == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}


def test_a_script_that_slurm_runs_is_no_rank() -> None:
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_LOCALID": "0"}
    assert rank_variables(slurm) == {}
    assert rank_variables(slurm | {"MASTER_ADDR": "node1", "RANK": "3"}) == {}  # DeepSpeed's launcher said it
