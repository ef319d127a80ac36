"""The embeddings' benchmark in a small size."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import embedding
from benchmarks.embedding import moved_bytes
from tests.benchmarks.own_tests import end_own_tests


class Slow:
    """A step that does nothing."""

    def __init__(self, *arguments: object, **keywords: object) -> None:
        """Takes what a step takes."""

    def run(self, step: int) -> None:
        """A little work, so that it takes time."""
        torch.randn(100_000).sort()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs the command at a small size; the tests, the step and the compiler are stood in for."""
    monkeypatch.setattr(embedding, "OurStep", Slow)
    monkeypatch.setattr(embedding.torch, "compile", lambda function, dynamic: function)

    def call(red: bool = False) -> int:
        end_own_tests(monkeypatch, code=int(red))
        sizes = ["model.vocab_size=300", "model.hidden_size=32", "batch.micro_sequences=2", "data.sequence_length=16"]
        return embedding.main(["--rounds", "2", "--output", str(tmp_path), *sizes, "model.hidden_dropout_prob=0.1"])

    return call


def test_a_row_has_times_shares_and_bytes(small, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert small() == 0
    row = json.loads((tmp_path / "embedding.jsonl").read_text())
    assert row["share_plain"] == row["plain_milliseconds"] / row["step_milliseconds"] > 0
    assert row["plain_moved_bytes"] > row["fused_moved_bytes"] > 300 * 32 * 4
    assert "tiny, width 32, 300 ids, 2 x 16 tokens, dropout 0.1: plain" in capsys.readouterr().out


def test_red_tests_give_no_number(small, tmp_path: Path) -> None:
    assert small(red=True) == 1
    assert not list(tmp_path.iterdir())


def test_compiled_code_that_disagrees_gets_no_time(small, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedding.torch, "compile", lambda function, dynamic: lambda: function() * 1.001)
    with pytest.raises(AssertionError, match="states"):
        small()
    assert not list(tmp_path.iterdir())


def test_moved_bytes_are_those_counted_by_hand() -> None:
    """One token of width 1, one id, float32: 8 + 2 passes of 4 bytes, 8 of 4, the gradient; 7 of 4 and the gradient."""
    assert moved_bytes("plain", 1, 1, 1, 4, 0.0) == 18 * 4 + 4
    assert moved_bytes("fused", 1, 1, 1, 4, 0.0) == 7 * 4 + 4
    assert moved_bytes("plain", 8, 1, 1, 4, 0.1) == 8 * (18 * 4 + 8 * 4 + 2) + 4 + 10 * (2 * 16 + 8 * 16)
