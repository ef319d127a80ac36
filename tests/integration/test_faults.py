"""What goes wrong in a month, done to a small run: it ends as one that nothing happened to, or says what to do."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from disentangled.trainer.checkpoint import checkpoints_of, find_checkpoint, list_checkpoints, load_state, step_of
from disentangled.trainer.events import Event, read_events
from disentangled.trainer.interrupt import EXIT_SAVED
from disentangled.trainer.launch import TRAIN_MODULE, find_free_port
from disentangled.trainer.metric_log import read_rows
from disentangled.trainer.skipped_samples import Skip, read_skips, write_skips
from disentangled.trainer.watchdog import EXIT_HANG
from tests.integration.finished_run import (
    differing_names,
    last_state,
    launch_run,
    rows_without_timings,
    run_command_line,
)
from tests.launching import Finished, Started, run_command, start_command, wait_until_gone

pytestmark = pytest.mark.slow

FAULTY_MODULE = "tests.integration.faulty_train"
SEED = 5


def faulty_command(fault: str, shards: Path, folder: Path, *overrides: str) -> list[str]:
    """The run's command on two ranks with a fault put in, see faulty_train.py."""
    command = run_command_line(shards, folder, *overrides)
    runner = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port"]
    own = [str(find_free_port()), "--module", FAULTY_MODULE, fault]
    return [*runner, *own, *command[command.index("--recipe") :]]


def run_faulty(fault: str, shards: Path, folder: Path, *overrides: str) -> Finished:
    return run_command(*faulty_command(fault, shards, folder, *overrides))


def events_of(folder: Path, *kinds: str) -> list[Event]:
    return [event for event in read_events(folder) if event["kind"] in kinds]


def assert_ended_like(folder: Path, straight: Path) -> None:
    """Weights, moments, counters and all metrics are those of the run that nothing happened to."""
    one, other = last_state(folder), last_state(straight)
    assert differing_names(one, other) == []
    assert rows_without_timings(folder) == rows_without_timings(straight)


@pytest.mark.parametrize("fault", ["nan", "inf"])
def test_loss_that_is_not_finite_is_skipped_counted_and_told(shards: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "run"
    finished = run_faulty(f"{fault}=160-176", shards, folder, "schedule.total_steps=40")
    assert finished.code == 0, finished
    skipped = events_of(folder, "skipped_update")
    assert [(event["step"], event["first_sample"]) for event in skipped] == [(20, 160), (21, 168)]
    assert all("generator's update was skipped: its gradient is not finite" in event["text"] for event in skipped)
    rows = read_rows(folder / "metrics.jsonl")
    assert rows[-2]["generator_skipped_steps"] == 2 and rows[-2]["discriminator_skipped_steps"] == 0
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_gradient_spike_is_skipped(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = run_faulty("spike=960-968", shards, folder, "schedule.total_steps=130", "evaluate.every_steps=0")
    assert finished.code == 0, finished
    [event] = events_of(folder, "skipped_update")
    assert event["step"] == 120 and "gradient's norm is" in event["text"]


def test_run_goes_back_passes_bad_samples_over_and_ends_as_if_they_were_not_there(shards: Path, tmp_path: Path) -> None:
    folder, clean = tmp_path / "run", tmp_path / "clean"
    options = ("schedule.total_steps=50", "checkpoint.every_steps=10", "faults.rollback_after=5")
    finished = run_faulty("nan=176-256", shards, folder, *options)
    assert finished.code == 0, finished
    skips = read_skips(folder)
    assert [(skip.step, skip.num_samples, len(skip.windows)) for skip in skips] == [(22, 40, 40), (22, 40, 40)]
    backs = events_of(folder, "rollback")
    assert [(event["step"], event["to_step"], event["first_sample"]) for event in backs] == [
        (28, 20, 176),  # the fifth refusal, of the update from step 26, is known a step later
        (28, 20, 216),
    ]
    assert load_state(list_checkpoints(folder)[0]).consumed_samples == 50 * 8 + 80

    clean.mkdir()
    write_skips(clean, [Skip(22, 80, [])])
    finished = launch_run(shards, clean, *options)
    assert finished.code == 0 and not events_of(clean, "skipped_update"), finished
    assert_ended_like(folder, clean)


def test_run_that_cannot_be_helped_by_going_back_says_so(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("checkpoint.every_steps=10", "faults.rollback_after=3", "faults.most_rollbacks=2")
    finished = run_faulty("nan=160-99999", shards, folder, *options)
    assert finished.code == 2, finished
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert "3 updates in a row from step 20 on were refused, after 2 times of going back" in line
    assert len(events_of(folder, "rollback")) == 2
    assert find_checkpoint(folder)[0] is not None


def test_rank_that_hangs_leaves_stacks_of_all_and_the_run_goes_on(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("checkpoint.every_steps=45",)
    finished = run_faulty("hang=1@60", shards, folder, *options, "faults.hang_seconds=15")
    assert finished.code == EXIT_HANG, finished
    stacks = sorted((folder / "stacks").iterdir())
    assert [path.name for path in stacks] == ["rank_00000.txt", "rank_00001.txt"]
    assert "faulty_train.py" in stacks[1].read_text() and "run_steps" in stacks[0].read_text()
    assert f"rank 1 on {os.uname().nodename} made no progress for 15 s" in finished.stderr
    assert launch_run(shards, folder, *options).code == 0
    assert len(events_of(folder, "hang")) == 2 and not (folder / "stacks").exists()
    assert_ended_like(folder, straight)


def test_clock_that_jumps_changes_nothing(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    finished = run_faulty("clock=1", shards, folder, "checkpoint.every_steps=45", "log.tensorboard=true")
    assert finished.code == 0, finished
    assert_ended_like(folder, straight)
    assert all(0 < row["seconds_per_step"] < 60 for row in read_rows(folder / "metrics.jsonl") if "mlm_loss" in row)


def test_out_of_memory_says_what_to_change(shards: Path, tmp_path: Path) -> None:
    finished = run_faulty("memory=0@5", shards, tmp_path / "run")
    assert finished.code == 2, finished
    [line] = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert "rank 0 on " in line and "halve batch.micro_sequences" in line


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own with room for less than one checkpoint; only root may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("this user cannot mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_full_disk_is_told_and_the_run_goes_on_once_there_is_room(
    straight: Path, shards: Path, small_disk: Path
) -> None:
    folder = small_disk / "run"
    options = ("checkpoint.every_steps=45",)
    finished = launch_run(shards, folder, *options)
    assert finished.code == 2, finished
    assert "warning: the checkpoint of step 45 could not be written" in finished.stderr
    assert "step 90 could not be saved" in finished.stderr and "free some space" in finished.stderr
    assert find_checkpoint(folder) == (None, [])
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    finished = launch_run(shards, folder, *options)
    assert finished.code == 0, finished
    assert_ended_like(folder, straight)


def test_second_launch_into_one_folder_is_refused_and_the_first_goes_on(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with start_command(*run_command_line(shards, folder, "schedule.total_steps=1000000")) as first:
        first.wait_for_output("step ")
        second = launch_run(shards, folder, "schedule.total_steps=1000000")
        assert second.code == 2 and f"run.dir {folder} is in use by process" in second.stderr, second
        lines = first.output().count("step ")
        while first.output().count("step ") == lines:
            assert first.process.poll() is None
            time.sleep(0.05)
        first.process.send_signal(signal.SIGTERM)
        assert first.finish().code == EXIT_SAVED
    assert find_checkpoint(folder)[0] is not None


@pytest.mark.parametrize("harm", ["deleted", "truncated"])
def test_shard_that_goes_bad_while_training_is_named(shards: Path, tmp_path: Path, harm: str) -> None:
    own, folder = Path(shutil.copytree(shards, tmp_path / "shards")), tmp_path / "run"
    options = ("data.shuffle_block_shards=1", "schedule.total_steps=400", "checkpoint.every_steps=5")
    with start_command(*run_command_line(own, folder, *options)) as started:
        while find_checkpoint(folder)[0] is None:
            assert started.process.poll() is None
            time.sleep(0.05)
        for path in sorted((own / "train").rglob("*.arrow")):  # a deleted one that is open stays whole for the run
            if harm == "deleted":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:1000])
        finished = started.finish()
    assert finished.code == 2 and str(own / "train") in finished.stderr, finished
    shutil.rmtree(own)
    shutil.copytree(shards, own)
    with start_command(*run_command_line(own, folder, *options)) as started:
        started.wait_for_output("resuming at step")
        started.wait_for_output("tok/s")
        started.process.send_signal(signal.SIGTERM)
        assert started.finish().code == EXIT_SAVED


def ranks_of(started: Started) -> list[psutil.Process]:
    """The run's ranks, without launchers, which name the module elsewhere, and without what the ranks forked."""
    found = []
    for process in started.processes():
        with contextlib.suppress(psutil.Error):
            pairs = itertools.pairwise(process.cmdline())
            if any(pair in (("-m", TRAIN_MODULE), ("-m", FAULTY_MODULE)) for pair in pairs):
                found.append(process)
    numbers = {process.pid for process in found}
    ranks = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.ppid() not in numbers:
                ranks.append(process)
    return ranks


def kill_some(started: Started, which: str, dice: random.Random) -> None:
    """SIGKILL one rank, all ranks, or everything."""
    ranks = ranks_of(started)
    victims = started.processes() if which == "everything" else ranks
    for process in [dice.choice(ranks)] if which == "one rank" and ranks else victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)


@pytest.mark.parametrize("which", ["one rank", "all ranks", "everything"])
def test_killed_run_goes_on_and_ends_the_same(straight: Path, shards: Path, tmp_path: Path, which: str) -> None:
    folder = tmp_path / "run"
    options = ("checkpoint.every_steps=15",)
    with start_command(*run_command_line(shards, folder, *options)) as started:
        started.wait_for_output("step 42/")
        family = started.processes()
        kill_some(started, which, random.Random(SEED))
        assert started.finish().code not in (0, 2)
        assert wait_until_gone(family) == []
    saved = step_of(list_checkpoints(folder)[0])
    assert 0 < saved < 90
    finished = launch_run(shards, folder, *options)
    assert finished.code == 0 and f"resuming at step {saved}" in finished.stdout, finished
    assert differing_names(last_state(folder), last_state(straight)) == []


def test_killed_while_saving_leaves_the_checkpoint_before(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("checkpoint.every_steps=30",)
    with start_command(*faulty_command("slow_disk=1", shards, folder, *options)) as started:
        partial = checkpoints_of(folder) / "step_00000060.partial"
        while not partial.exists():
            assert started.process.poll() is None
            time.sleep(0.01)
        for process in started.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        started.process.wait()
    assert [path.name for path in list_checkpoints(folder)] == ["step_00000030"] and partial.exists()
    finished = launch_run(shards, folder, "checkpoint.every_steps=45")
    assert finished.code == 0 and "resuming at step 30" in finished.stdout, finished
    assert not partial.exists()
    assert differing_names(last_state(folder), last_state(straight)) == []


NUM_KILLS = 30


def newest_step(folder: Path) -> int:
    checkpoints = list_checkpoints(folder)
    return step_of(checkpoints[0]) if checkpoints else 0


def wait_for_moment(started: Started, folder: Path, moment: str, dice: random.Random) -> None:
    """Return at a moment of the launch: while it starts or soon after, after a checkpoint, or while it saves one."""
    before, since = newest_step(folder), time.time()
    has_come = {
        "starting": lambda: ranks_of(started),
        "training": lambda: newest_step(folder) > before,
        "saving": lambda: any(path.stat().st_mtime > since for path in checkpoints_of(folder).glob("*.partial")),
    }[moment]
    while started.process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if has_come():
                break
        time.sleep(0.005)
    time.sleep({"starting": dice.uniform(0.0, 8.0), "training": dice.uniform(0.0, 1.0), "saving": 0.0}[moment])


def test_soak_of_kills_ends_with_the_weights_of_a_run_that_nothing_happened_to(
    straight: Path, shards: Path, tmp_path: Path
) -> None:
    folder, dice = tmp_path / "run", random.Random(SEED)
    # steps take long enough that no kill comes many of the 90 later than it should
    command = faulty_command("slow_step=0.5", shards, folder, "checkpoint.every_steps=2", "checkpoint.keep_last=2")
    for _ in range(NUM_KILLS):
        with start_command(*command) as started:
            wait_for_moment(started, folder, dice.choice(("starting", "starting", "training", "saving")), dice)
            family = started.processes()
            assert family, started.finish()
            kill_some(started, dice.choice(("one rank", "all ranks", "everything")), dice)
            assert started.finish().code != 0
            assert wait_until_gone(family) == []
    finished = run_command(*command)
    assert finished.code == 0, finished
    steps = [event["step"] for event in events_of(folder, "resume")]
    assert len(steps) > NUM_KILLS / 3 and steps == sorted(steps)  # some were killed before they had resumed
    assert differing_names(last_state(folder), last_state(straight)) == []
