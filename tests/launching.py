"""Runs our commands as a user would, in processes of their own, and never leaves one behind."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
LAUNCH_SECONDS = 240  # a stuck launch fails its test; a healthy one takes 10 to 20 on two slow cores


@dataclass(frozen=True)
class Finished:
    """What a command gave."""

    code: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


class Started:
    """A command under way, its output going to files."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self._folder = folder

    def output(self) -> str:
        """All of stdout so far."""
        return (self._folder / "stdout").read_text(encoding="utf-8")

    def processes(self) -> list[psutil.Process]:
        """The command's process and everything below it; nothing once it has ended."""
        if self.process.poll() is not None:
            return []
        top = psutil.Process(self.process.pid)
        return [top, *top.children(recursive=True)]

    def wait_for_output(self, text: str) -> None:
        """Return when stdout holds `text`; AssertionError where the command ends or takes too long without."""
        deadline = time.monotonic() + LAUNCH_SECONDS
        while text not in self.output():
            assert self.process.poll() is None, f"ended before it said {text!r}\n{self.finish()}"
            assert time.monotonic() < deadline, f"did not say {text!r} in time\n{self.output()}"
            time.sleep(0.05)

    def finish(self, seconds: float = LAUNCH_SECONDS) -> Finished:
        """Wait for the end; TimeoutExpired where it takes longer."""
        code = self.process.wait(seconds)
        return Finished(code, self.output(), (self._folder / "stderr").read_text(encoding="utf-8"))


@contextlib.contextmanager
def start_command(*command: str) -> Iterator[Started]:
    """Run a command from the repository's root; whatever of it still runs at the end of the context is killed."""
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment.pop("TRITON_INTERPRET", None)  # tests/conftest.py sets it for its own process
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=stdout, stderr=stderr)
        started = Started(process, folder)
        try:
            yield started
        finally:
            for survivor in started.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    survivor.kill()
            process.wait()


def run_command(*command: str, seconds: float = LAUNCH_SECONDS) -> Finished:
    """Run a command to its end."""
    with start_command(*command) as started:
        return started.finish(seconds)


def launch_command(*arguments: str, num_processes: int = 2) -> tuple[str, ...]:
    """The command line of our launcher with `num_processes` ranks."""
    launcher = (sys.executable, "-m", "disentangled.trainer.launch", "--num_accelerators", str(num_processes))
    return (*launcher, *arguments)


def wait_until_gone(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of the processes that still run after LAUNCH_SECONDS; normally none, and at once."""
    _, alive = psutil.wait_procs(processes, LAUNCH_SECONDS)
    return alive
