"""Warnings that are said once a process are said once a test."""

from collections.abc import Iterator

import pytest

from disentangled.finetune.fallback import say_once


@pytest.fixture(autouse=True)
def unsaid() -> Iterator[None]:
    say_once.cache_clear()
    yield


@pytest.fixture
def warnings_said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level("WARNING", "disentangled")
    return caplog
