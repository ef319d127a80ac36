"""The drop-in's benchmark in a small size: what it times is checked first, and a wrong variant gets no number."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import drop_in
from benchmarks.drop_in_batches import FEWEST_TOKENS, make_batches, text_lengths
from benchmarks.drop_in_variants import VARIANTS, Variant
from disentangled.finetune.fused_encoder import FusedEncoder
from tests.benchmarks.own_tests import end_own_tests

SMALL = ["--size", "tiny", "--tokens", "40", "--rows", "3", "--batches", "2", "--rounds", "2"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Texts of 30, 3 and 20 words, between blank lines."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(" ".join(["word"] * count) for count in (30, 3, 20)))
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command without its tests, which are in this suite; gives the exit code and the rows."""

    def call(*arguments: str, red: bool = False) -> tuple[int, list[dict]]:
        end_own_tests(monkeypatch, code=int(red))
        code = drop_in.main([*SMALL, "--text", str(text), "--output", str(tmp_path / "results"), *arguments])
        path = tmp_path / "results" / "drop_in.jsonl"
        return code, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return call


def test_rows_have_times_ratios_and_what_was_run(run, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = run()
    assert code == 0
    assert [(row["case"], row["variant"]) for row in rows] == [
        (case, variant) for case in ("mixed", "dense") for variant in ("transformers", "ours", "ours_all_tokens")
    ]
    for row in rows:
        assert row["forward_wall_median_seconds"] > 0 and row["forward_backward_cpu_median_seconds"] > 0
        low, high = row["forward_wall_speed_up_range"]
        assert low <= row["forward_wall_speed_up"] <= high
        assert row["versions"]["transformers"] and row["rounds"] == 2 and row["rows"] == 3
        assert (row["live_share"] == 1) == (row["case"] == "dense")
    assert rows[0]["forward_wall_speed_up"] == 1
    printed = capsys.readouterr().out
    assert "transformers eager" in printed and "unpad=False" in printed


def test_red_tests_give_no_number(run, capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = run(red=True)
    assert (code, rows) == (1, [])
    assert "red tests, so no numbers" in capsys.readouterr().out


@contextmanager
def lend_wrong(model: nn.Module) -> Iterator[nn.Module]:
    """A variant that is a little wrong."""
    handle = model.encoder.layer[1].register_forward_hook(lambda module, inputs, output: (output[0] * 1.001, None))
    try:
        yield model
    finally:
        handle.remove()


@contextmanager
def lend_missing(model: nn.Module) -> Iterator[nn.Module]:
    """A library that is not installed."""
    import no_such_library  # noqa: F401

    yield model


def test_wrong_and_missing_variants_are_errors_without_times(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "flashdeberta", Variant("wrong", lend_wrong))
    monkeypatch.setitem(VARIANTS, "disentangled_flash", Variant("missing", lend_missing))
    code, rows = run("--cases", "mixed", "--variants", "flashdeberta,disentangled_flash,transformers")
    by_name = {row["variant"]: row for row in rows}
    assert code == 0, "an error of ours alone is a failure"
    assert "hidden states" in by_name["flashdeberta"]["error"]
    assert "no_such_library" in by_name["disentangled_flash"]["error"]
    assert not any("seconds" in key or "speed_up" in key for key in by_name["flashdeberta"])
    assert by_name["transformers"]["forward_wall_speed_up"] == 1
    monkeypatch.setitem(VARIANTS, "ours", Variant("wrong", lend_wrong))
    assert run("--cases", "mixed", "--variants", "ours,transformers")[0] == 1


def test_variants_of_ours_are_undone() -> None:
    model = drop_in.make_model("tiny", 40, 0.0, torch.float32, "cpu")
    for name in ("ours", "ours_all_tokens"):
        with VARIANTS[name].lend(model) as lent:
            assert isinstance(lent.encoder, FusedEncoder)
        assert not isinstance(model.encoder, FusedEncoder)


def test_lengths_are_the_texts_and_the_longest_row_fills_the_batch(text: Path, tmp_path: Path) -> None:
    lengths = text_lengths(text, "block", tmp_path)
    assert lengths == [32, 22], f"words and two special tokens, of texts with at least {FEWEST_TOKENS}"
    for batch in make_batches(lengths, "mixed", 5, 4, 25, 100, "cpu"):
        assert batch.lengths[0] == 25 and set(batch.lengths[1:]) <= {25, 22}
        assert batch.attention_mask.sum(1).tolist() == list(batch.lengths)
    assert make_batches(lengths, "dense", 1, 4, 25, 100, "cpu")[0].lengths == (25,) * 4
