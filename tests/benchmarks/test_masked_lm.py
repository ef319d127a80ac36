"""The benchmark of the masked language modelling loss at a small size, and the speed that is promised on a CPU."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import masked_lm
from benchmarks.masked_lm_rivals import RIVALS, Rival, eager_loss
from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw
from tests.benchmarks.own_tests import end_own_tests


def test_a_red_test_leaves_no_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    end_own_tests(monkeypatch, code=1)
    assert masked_lm.main(["--sizes", "5x300x8", "--output", str(tmp_path)]) == 1
    assert not list(tmp_path.iterdir())


def test_a_row_has_times_and_memory_of_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_own_tests(monkeypatch, code=0)
    assert masked_lm.main(["--sizes", "40x3000x8,5x300x8", "--repeats", "3", "--output", str(tmp_path)]) == 0
    rows = [json.loads(line) for line in (tmp_path / "masked_lm.jsonl").read_text().splitlines()]
    assert [row["num_ids"] for row in rows] == [3000, 300]
    assert all(row[f"{name}_milliseconds"] > 0 for row in rows for name in ("fused", "unfused"))
    assert rows[0]["unfused_extra_bytes"] > 40 * 3000 * 8  # the rival's draw is in float64
    assert "40 rows, 3000 ids, width 8: fused " in capsys.readouterr().out


def test_rivals_have_a_number_or_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    end_own_tests(monkeypatch, code=0)
    wrong = Rival("half", lambda *inputs: eager_loss(*inputs) / 2)
    monkeypatch.setitem(RIVALS, "compiled", wrong)
    arguments = ["--sizes", "40x300x8", "--repeats", "3", "--rivals", ",".join(RIVALS), "--output", str(tmp_path)]
    assert masked_lm.main(arguments) == 0
    row = json.loads((tmp_path / "masked_lm.jsonl").read_text())
    assert row["eager_milliseconds"] > 0 and row["eager_extra_bytes"] > 40 * 300 * 4
    assert row["compiled_error"].startswith("ArithmeticError: its loss is ") and "compiled_milliseconds" not in row
    for name, rival in RIVALS.items():
        if rival.needs_gpu and not torch.cuda.is_available():
            assert row[f"{name}_error"].endswith("it needs a GPU" if rival.version() else "is not installed")
    assert "torch_milliseconds" in row or not hasattr(torch.nn.functional, "linear_cross_entropy")
    said = capsys.readouterr().out
    assert "  eager, the loss alone: " in said and ": fastest loss alone over loss and draw " in said
    assert "  half: ArithmeticError" in said


def test_an_unknown_rival_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        masked_lm.main(["--rivals", "ligger"])
    assert "--rivals has 'ligger': give some of eager, compiled, torch, liger, cut" in capsys.readouterr().err


def test_the_rivals_draw_follows_the_softmax() -> None:
    """So that it does the same work."""
    places = torch.arange(20_000)
    draw = Draw(1, Stream.REPLACEMENT, places, places, torch.arange(12) < 2)
    logits = torch.linspace(-1.0, 1.0, 12)
    counts = masked_lm.draw_from_all_logits(logits.expand(20_000, 12), draw).bincount(minlength=12)
    expected = 20_000 * logits.double().masked_fill(draw.banned, -torch.inf).softmax(-1)
    assert not counts[:2].any()
    chi_square = float(((counts - expected)[2:] ** 2 / expected[2:]).sum())
    assert chi_square < 9 + 5 * (2 * 9) ** 0.5  # its mean and five standard deviations, 9 degrees of freedom


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU another implementation runs")
@pytest.mark.parametrize("size", [(154, 8192, 128), (400, 32_000, 256)])
def test_torch_is_at_least_as_fast_as_unfused_code(size: tuple[int, int, int]) -> None:
    row = masked_lm.compare(*size, repeats=5)
    assert row["fused_milliseconds"] <= row["unfused_milliseconds"], masked_lm.describe(row)
