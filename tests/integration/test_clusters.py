"""Two hosts: launched in each of the ways of docs/clusters.md, one of them lost, gone on with on the other."""

import contextlib
import os
import sys
import time
from pathlib import Path

import pytest

from disentangled.trainer.checkpoint import list_checkpoints, load_state
from disentangled.trainer.events import read_events
from disentangled.trainer.launch import TRAIN_MODULE
from tests.integration.finished_run import differing_names, last_state, rows_without_timings, run_arguments
from tests.integration.two_hosts import INTERFACE, Host, has_namespaces, has_ssh, reachable_by_ssh, start_hosts
from tests.launching import Started, start_command, wait_until_gone

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_namespaces(), reason="needs root and Linux namespaces: unshare, nsenter, ip"),
]
LAUNCH = (sys.executable, "-m", "disentangled.trainer.launch")
PORT = "29511"
# a rank whose peer vanished sees it when the network says so; without a word, after gloo's time limit
FAILURE_SECONDS = 120


def write_hostfile(folder: Path, hosts: tuple[Host, Host]) -> Path:
    path = folder / "hostfile"
    path.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    return path


def wait_for_step(started: Started, step: int) -> None:
    started.wait_for_output(f"step {step:2}/90")


def test_run_goes_on_after_a_host_is_lost(shards: Path, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = run_arguments(shards, folder, "checkpoint.every_steps=10")
    with start_hosts() as hosts, contextlib.ExitStack() as stack:
        hostfile = str(write_hostfile(tmp_path, hosts))
        commands = [
            (*LAUNCH, "--hostfile", hostfile, "--no_ssh", "--node_rank", str(number),
             "--master_addr", hosts[0].address, "--master_port", PORT, "--", *arguments)
            for number in (0, 1)
        ]  # fmt: skip
        first, _ = (stack.enter_context(start_command(*host.inside(*command)))
                    for host, command in zip(hosts, commands, strict=True))  # fmt: skip
        wait_for_step(first, 28)
        processes = first.processes()
        hosts[1].power_off()
        lost = time.monotonic()
        finished = first.finish()
        print(f"host 1 ended {time.monotonic() - lost:.1f} s after host 2 was lost\n{finished}")
        assert finished.code not in (0, 2, 85)
        assert not wait_until_gone(processes)
        saved = load_state(list_checkpoints(folder)[0]).step
        assert 20 <= saved < 90
        with start_command(*hosts[0].inside(*LAUNCH, "--num_accelerators", "2", "--", *arguments)) as again:
            resumed = again.finish()
    assert resumed.code == 0, resumed
    assert f"resuming at step {saved} from" in resumed.stdout
    assert [event["kind"] for event in read_events(folder) if event["kind"] != "save"] == ["start", "resume", "done"]
    assert rows_without_timings(folder) == rows_without_timings(straight)
    assert differing_names(last_state(folder), last_state(straight)) == []


@pytest.mark.skipif(not has_ssh(), reason="needs sshd and pdsh")
@pytest.mark.parametrize("launcher", ["pdsh", "openmpi"])
def test_hostfile_trains_on_both_hosts(launcher: str, shards: Path, straight: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    variables = {"GLOO_SOCKET_IFNAME": INTERFACE, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with start_hosts() as hosts, reachable_by_ssh(hosts, tmp_path) as programs:
        hostfile = str(write_hostfile(tmp_path, hosts))
        settings = [f"PATH={programs}:{Path(sys.executable).parent}:{os.environ['PATH']}"]
        options = ["--launcher", launcher, "--hostfile", hostfile]
        if launcher == "pdsh":  # it hands on what this file holds
            (tmp_path / "environment").write_text("".join(f"{name}={value}\n" for name, value in variables.items()))
            settings += [f"DS_ENV_FILE={tmp_path / 'environment'}"]
        else:
            handed_on = " ".join(f"-x {name}={value}" for name, value in variables.items())
            settings += ["OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"]
            options += ["--launcher_args", f"--mca plm_ssh_agent {programs / 'ssh'} {handed_on}"]
        command = hosts[0].inside("env", *settings, *LAUNCH, *options, "--", *run_arguments(shards, folder))
        with start_command(*command) as started:
            wait_for_step(started, 14)
            ranks = [host.run("ps", "axww").count(f"-m {TRAIN_MODULE}") for host in hosts]
            finished = started.finish()
    assert finished.code == 0, finished
    assert all(ranks), ranks
    assert rows_without_timings(folder) == rows_without_timings(straight)
    assert differing_names(last_state(folder), last_state(straight)) == []
