"""Warnings that are said once a process are said once a test; a small pre-trained model with its tokenizer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from disentangled.finetune.fallback import say_once
from tests.finetune.tiny_pretrained import write_pretrained


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    say_once.cache_clear()
    yield


@pytest.fixture
def warnings_said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING", "disentangled")
    return caplog


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody writes to."""
    return write_pretrained(tmp_path_factory.mktemp("pretrained") / "model")
