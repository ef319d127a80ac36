"""Runs that are told to stop, or whose launchers die: they save, leave nothing behind, and go on as if nothing were."""

import contextlib
import signal
import sys
from pathlib import Path

import psutil
import pytest

from disentangled.trainer.checkpoint import find_checkpoint, load_state
from disentangled.trainer.interrupt import NODE_LAUNCHER
from disentangled.trainer.launch import TRAIN_MODULE, find_free_port
from tests.integration.finished_run import (
    RUN,
    differing_names,
    last_state,
    launch_run,
    rows_without_timings,
    run_command_line,
)
from tests.launching import Started, start_command, wait_until_gone

FIRST_ROW = f"step {RUN.every_steps:>2}/{RUN.total_steps}"


def saved_step(folder: Path) -> int:
    checkpoint, faults = find_checkpoint(folder)
    assert checkpoint is not None and not faults
    return load_state(checkpoint).step


def with_option(started: Started, *words: str) -> list[psutil.Process]:
    """The command's processes whose command lines hold these words one after another; not the workers they forked."""
    found = {}
    for process in started.processes():
        with contextlib.suppress(psutil.NoSuchProcess):  # short-lived helpers end, or are zombies, while we look
            if " ".join(words) in " ".join(process.cmdline()):
                found[process.pid] = process.ppid(), process
    return [process for parent, process in found.values() if parent not in found]


def test_run_told_to_stop_saves_and_ends_as_if_it_had_not(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder)) as started:
        started.wait_for_output(FIRST_ROW)
        everything = started.processes()
        started.process.send_signal(signal.SIGTERM)
        started.wait_for_output("SIGTERM: the ranks save and leave")
        started.process.send_signal(signal.SIGINT)
        stopped = started.finish()
        assert stopped.code == 85, stopped
        assert "SIGINT: still saving" in stopped.stdout or "saved at step" in stopped.stdout
        assert f"saved at step {saved_step(folder)}" in stopped.stdout
        assert RUN.every_steps <= saved_step(folder) < RUN.total_steps
        assert stopped.stderr == ""
        assert wait_until_gone(everything) == []
    step = saved_step(folder)
    finished = launch_run(shards, folder)
    assert finished.code == 0, finished
    assert f"resuming at step {step} from" in finished.stdout
    assert differing_names(last_state(folder), last_state(straight)) == []
    assert rows_without_timings(folder) == rows_without_timings(straight)


@pytest.mark.slow
def test_ranks_whose_launcher_was_killed_save_and_leave(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder)) as started:
        started.wait_for_output(FIRST_ROW)
        everything = started.processes()
        started.process.kill()
        assert wait_until_gone(everything) == []
        assert "stopped (its launcher is gone), saved at step" in started.output()
    assert RUN.every_steps <= saved_step(folder) < RUN.total_steps


@pytest.mark.slow
def test_ranks_of_a_plain_deepspeed_that_was_terminated_save_and_leave(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = run_command_line(shards, folder)
    place = command.index("--recipe")
    deepspeed = Path(sys.executable).parent / "deepspeed"
    options = ("--num_accelerators", "2", "--master_port", str(find_free_port()), "--module", TRAIN_MODULE)
    with start_command(sys.executable, str(deepspeed), *options, *command[place:]) as started:
        started.wait_for_output(FIRST_ROW)
        everything = started.processes()
        started.process.terminate()
        assert started.finish().code == -signal.SIGTERM
        assert wait_until_gone(everything) == []
    assert RUN.every_steps <= saved_step(folder) < RUN.total_steps


@pytest.mark.slow
def test_launcher_adopts_ranks_whose_own_launcher_was_killed(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder)) as started:
        started.wait_for_output(FIRST_ROW)
        (node_launcher,) = with_option(started, "-m", NODE_LAUNCHER)
        node_launcher.kill()
        stopped = started.finish()
        assert stopped.code == 85, stopped
    assert RUN.every_steps <= saved_step(folder) < RUN.total_steps


@pytest.mark.slow
def test_launcher_tells_of_a_rank_that_was_killed(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder, "checkpoint.every_steps=5")) as started:
        started.wait_for_output(FIRST_ROW)
        everything = started.processes()
        (rank,) = with_option(started, "-m", TRAIN_MODULE, "--local_rank=1")
        rank.kill()
        assert started.finish().code in (1, 128 + signal.SIGKILL)  # whichever of the two ranks ended first
        assert wait_until_gone(everything) == []
    assert saved_step(folder) >= 5


@pytest.mark.slow
def test_stop_before_the_training_began_loses_nothing(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder)) as started:
        while not with_option(started, "-m", TRAIN_MODULE):
            assert started.process.poll() is None
        everything = started.processes()
        started.process.send_signal(signal.SIGUSR1)
        stopped = started.finish()
        assert stopped.code == 85, stopped
        assert "stopped before the training began" in stopped.stdout
        assert wait_until_gone(everything) == []
    assert not folder.exists()
