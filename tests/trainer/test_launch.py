import itertools
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from disentangled.trainer import launch
from disentangled.trainer.launch import (
    StopRequests,
    adopt_orphans,
    build_command,
    exit_code,
    find_free_port,
    find_processes,
    is_rank,
    main,
    searchable_path,
    split_arguments,
    wait_for_run,
)

RUN = ["--recipe", "tiny", "--engine", "fp32_cpu"]


@pytest.mark.parametrize(
    ("arguments", "deepspeed_options", "trainer_arguments"),
    [
        ([*RUN, "run.dir=x"], [], [*RUN, "run.dir=x"]),
        (["--num_accelerators", "2", *RUN], ["--num_accelerators", "2"], RUN),
        (["--num_accelerators", "2", "--", *RUN, "a.b=c"], ["--num_accelerators", "2"], [*RUN, "a.b=c"]),
        (
            [*RUN, "run.dir=x", "--hostfile", "hosts", "--no_ssh_check", "log.every_steps=5"],
            ["--hostfile", "hosts", "--no_ssh_check"],
            [*RUN, "run.dir=x", "log.every_steps=5"],
        ),
        (["--recipe=tiny", "--include=a:0", "--engine=fp32_cpu"], ["--include=a:0"], RUN),
        (["--launcher_args", "x=y", "--", *RUN], ["--launcher_args", "x=y"], RUN),
        (["--", "seed=1", *RUN], [], ["seed=1", *RUN]),
        (["seed=1", *RUN], [], [*RUN, "seed=1"]),  # a mistyped key, which the trainer names
    ],
)
def test_arguments_go_to_whom_they_belong(
    arguments: list[str], deepspeed_options: list[str], trainer_arguments: list[str]
) -> None:
    assert split_arguments(arguments) == (deepspeed_options, trainer_arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_accelerators", "2"], "the following arguments are required: --recipe, --engine"),
        (["--recipe", "tiny"], "required: --engine"),
        (["--num_accelerators", "2", "--", "--recipe", "tiny"], "required: --engine"),
        ([*RUN, "recipes/tiny.toml"], "'recipes/tiny.toml' belongs to no option"),
        (["--", *RUN, "--num_accelerators", "2"], "unrecognized arguments: --num_accelerators"),
        ([*RUN, "--recipe"], "argument --recipe: expected one argument"),
    ],
)
def test_arguments_that_cannot_be_right_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    stderr = capsys.readouterr().err
    assert message in stderr and stderr.startswith("error: ") and stderr.count("\n") == 1


def test_help_says_how_arguments_are_split(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["--help"])
    assert leaving.value.code == 0
    text = capsys.readouterr().out
    assert all(words in text for words in ("--num_accelerators", "what is before it is DeepSpeed's", "85 stopped"))


def test_command_is_quiet_and_picks_a_free_port() -> None:
    command = build_command(["--num_accelerators", "2"], RUN, "the-id")
    assert command[:5] == [sys.executable, "-m", "deepspeed.launcher.runner", "--log_level", "critical"]
    port = int(command[command.index("--master_port") + 1])
    with socket.socket() as listener:
        listener.bind(("", port))
    assert command[-9:-4] == ["2", "--module", "disentangled.trainer.train", "--launch-id", "the-id"]
    assert command[-4:] == RUN


@pytest.mark.parametrize("option", ["--master_port=1", "--hostfile=h", "-H"])
def test_command_leaves_the_port_to_whoever_names_one(option: str) -> None:
    assert "--master_port" not in build_command([option], RUN, "the-id")


def test_free_ports_differ_between_launches_and_are_not_taken_by_connections() -> None:
    ports = {find_free_port() for _ in range(20)}
    assert len(ports) > 1
    assert all(20_000 <= port < 32_768 for port in ports)


def test_port_that_somebody_listens_on_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = find_free_port()
    draws = iter([taken - launch.FIRST_PORT, 77])
    monkeypatch.setattr(launch.secrets, "randbelow", lambda limit: next(draws))
    with socket.socket() as listener:
        listener.bind(("", taken))
        listener.listen()
        assert find_free_port() != taken


@pytest.mark.parametrize(
    ("child", "orphans", "was_stopped", "code"),
    [
        (0, [], False, 0),
        (0, [], True, 0),  # the run ended before the request arrived
        (85, [], True, 85),
        (85, [], False, 85),  # somebody signalled a rank directly
        (2, [], False, 2),
        (1, [], True, 1),  # a failed save is no success
        (-9, [], False, 137),
        (247, [], False, 137),  # DeepSpeed's byte of a rank's -9
        (241, [], True, 85),  # SIGTERM met ranks that did not catch it yet: nothing was lost
        (241, [], False, 143),
        (-15, [85], False, 85),  # DeepSpeed's first launcher was killed, the one of this host was told 85
        (0, [85, 85], False, 85),  # the one of this host was killed: the first one takes that for success
        (0, [85, 0], False, 85),
        (0, [0, 0], False, 0),
        (0, [85, 1], False, 1),
        (0, [-9, 85], False, 137),
        (247, [0, 0], False, 137),  # all ranks were killed; their workers end without a complaint
        (2, [0], False, 2),
    ],
)
def test_exit_code_is_what_became_of_the_run(child: int, orphans: list[int], was_stopped: bool, code: int) -> None:
    assert exit_code(child, orphans, was_stopped) == code


@pytest.mark.parametrize("ends", ["before the launcher", "after it", "unseen at first"])
def test_exit_code_of_a_rank_that_outlives_its_launcher_is_found(tmp_path: Path, ends: str) -> None:
    """A launcher with exit code 0 that leaves a process of its launch, which ends with 85."""
    script = tmp_path / "leave.py"
    script.write_text(
        "import os, sys, time\n"
        "if os.fork():\n"  # DeepSpeed's first launcher
        "    time.sleep(2 if sys.argv[1].startswith('before') else 0)\n"
        "    os._exit(0)\n"
        "if os.fork():\n"  # the second, killed
        "    os._exit(0)\n"
        "time.sleep(0.5)\n"
        "os._exit(85)\n"
    )
    arguments = [str(script), ends, f"test-{tmp_path.name}"]
    unseen = ends == "unseen at first"
    process = multiprocessing.get_context("fork").Process(target=wait_in_this_process, args=(arguments, unseen))
    process.start()
    process.join(60)
    assert process.exitcode == 85


def wait_in_this_process(arguments: list[str], unseen: bool) -> None:
    """End with wait_for_run's code; the process takes over signals and orphans.

    Unseen: the first listing finds nothing, as one whose pids are older than the fork, and which reads the command of
    the process that forked when that has ended.
    """
    adopt_orphans()
    if unseen:
        find, listings = launch.find_processes, itertools.count()
        launch.find_processes = lambda launch_id: find(launch_id) if next(listings) else find_nothing_until_one_ended()
    child = subprocess.Popen([sys.executable, *arguments])
    sys.exit(wait_for_run(child, StopRequests(arguments[-1])))


def find_nothing_until_one_ended() -> list[psutil.Process]:
    while all(process.status() != psutil.STATUS_ZOMBIE for process in psutil.Process().children()):
        time.sleep(0.01)
    return []


def test_ranks_are_told_from_launchers(tmp_path: Path) -> None:
    """Processes with the command lines that DeepSpeed gives its two launchers and a rank."""
    sleep = tmp_path / "sleep.py"
    sleep.write_text("import time\ntime.sleep(100)\n")
    launch_id = f"test-{tmp_path.name}"
    tail = ["--launch-id", launch_id, *RUN]
    commands = [
        ["-m", "deepspeed.launcher.runner", "--module", launch.TRAIN_MODULE, *tail],
        ["-u", "-m", "deepspeed.launcher.launch", "--module", "--log_level=critical", launch.TRAIN_MODULE, *tail],
        ["-u", "-m", launch.TRAIN_MODULE, "--local_rank=1", *tail],
    ]
    started = [subprocess.Popen([sys.executable, str(sleep), *command]) for command in commands]
    try:
        deadline = time.monotonic() + 30
        while len(found := find_processes(launch_id)) < len(started) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert {process.pid for process in found} == {process.pid for process in started}
        assert [process.pid for process in found if is_rank(process)] == [started[2].pid]
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert find_processes(launch_id) == []


@pytest.fixture
def restored_signals() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("restored_signals")
def test_every_request_to_stop_is_announced_once(capsys: pytest.CaptureFixture[str]) -> None:
    requests = StopRequests("an id that no process has")
    requests.pass_on()
    assert capsys.readouterr().out == ""
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(os.getpid(), number)
        requests.pass_on()
    requests.pass_on()
    assert capsys.readouterr().out.splitlines() == [
        "SIGUSR1: the ranks save and leave, waiting for them",
        "SIGINT: still saving, waiting for them",
        "SIGTERM: still saving, waiting for them",
        "SIGHUP: still saving, waiting for them",
    ]


@pytest.mark.usefixtures("restored_signals")
def test_closed_terminal_stops_no_run_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    requests = StopRequests("an id that no process has")
    os.kill(os.getpid(), signal.SIGHUP)
    assert requests.received == []


def test_path_keeps_the_folders_that_may_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbidden = tmp_path / "forbidden"
    monkeypatch.setattr(os, "access", lambda folder, mode: mode == os.X_OK and folder != str(forbidden))
    path = os.pathsep.join(["/usr/bin", str(forbidden), str(tmp_path)])
    assert searchable_path(path) == os.pathsep.join(["/usr/bin", str(tmp_path)])
