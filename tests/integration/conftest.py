"""A run that goes straight through, with which interrupted and resumed ones are compared."""

from pathlib import Path

import pytest

from tests.integration.finished_run import RUN, launch_run


@pytest.fixture(scope="session")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of RUN.total_steps on two ranks, with a checkpoint half way."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    finished = launch_run(shards, folder, f"checkpoint.every_steps={RUN.total_steps // 2}")
    assert finished.code == 0, finished
    return folder
