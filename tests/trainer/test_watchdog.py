import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from disentangled.trainer.watchdog import EXIT_HANG, Watchdog, find_stacks

GRACE = "import disentangled.trainer.watchdog as w; w.GRACE_SECONDS = 0.2; "


def run_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", GRACE + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_rank_without_progress_leaves_its_stacks_and_ends(tmp_path: Path) -> None:
    finished = run_python(f"""
import pathlib, threading
def wait_for_the_others():
    threading.Event().wait()
watchdog = w.Watchdog(pathlib.Path({str(tmp_path)!r}), 3, 0.5)
wait_for_the_others()
""")
    assert finished.returncode == EXIT_HANG
    lines = finished.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: rank 3 on ") and "no progress for 0.5 s" in lines[0]
    [stacks] = find_stacks(tmp_path)
    assert stacks == tmp_path / "stacks" / "rank_00003.txt" and str(stacks) in lines[0]
    assert "wait_for_the_others" in stacks.read_text()


def test_rank_stuck_inside_the_interpreter_ends_too(tmp_path: Path) -> None:
    # a regular expression that backtracks for ever never lets another thread run
    finished = run_python(f"""
import pathlib, re
watchdog = w.Watchdog(pathlib.Path({str(tmp_path)!r}), 0, 0.5)
re.match(r"(a+)+$", "a" * 60 + "b")
""")
    assert finished.returncode not in (0, None)
    [stacks] = find_stacks(tmp_path)
    assert "re.match" in stacks.read_text() or "in match" in stacks.read_text()


def test_progress_keeps_a_rank_alive_whatever_the_clock_says(tmp_path: Path) -> None:
    finished = run_python(f"""
import pathlib, time
watchdog = w.Watchdog(pathlib.Path({str(tmp_path)!r}), 0, 1.0)
time.time = lambda: 1e12
for _ in range(12):
    watchdog.progress()
    time.sleep(0.2)
watchdog.close()
time.sleep(2)
print("alive")
""")
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, "alive\n", "")
    assert find_stacks(tmp_path) == [] and list(tmp_path.iterdir()) == []


def test_zero_seconds_watch_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watchdog = Watchdog(tmp_path, 0, 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    watchdog.progress()
    watchdog.close()
    assert list(tmp_path.iterdir()) == []
