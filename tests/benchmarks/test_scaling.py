import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import scaling
from benchmarks.scaling import CHANGES, Size, change_sizes, count_costs, fit, held_out_errors, main, predict
from disentangled.model.flops import step_flops
from disentangled.trainer.run_config import load_run_config
from tests.benchmarks.own_tests import end_own_tests
from tests.trainer.tiny_run import SMALLEST

COSTS = (2e-11, 5e-11, 3e-9, 0.01)


def made_up_sizes(noise: float) -> list[Size]:
    random = np.random.default_rng(1)
    sizes = []
    for number in range(11):
        counts = (*(float(value) for value in random.uniform([1e9, 1e8, 1e6], [9e9, 5e9, 9e6])), 1.0)
        seconds = float(np.dot(COSTS, counts)) * (1 + noise * (-1) ** number)
        sizes.append(Size(f"{number}", counts, seconds))  # type: ignore[arg-type]
    return sizes


def test_fit_finds_the_costs_that_made_the_times() -> None:
    sizes = made_up_sizes(0.0)
    assert fit(sizes) == pytest.approx(COSTS, rel=1e-6)
    assert held_out_errors(sizes) == pytest.approx([0.0] * 11, abs=1e-6)
    assert predict(np.array(COSTS), sizes[3].counts) == pytest.approx(sizes[3].seconds)


def test_errors_are_of_sizes_that_were_not_fitted() -> None:
    sizes = made_up_sizes(0.05)
    costs = fit(sizes)
    fitted = [abs(predict(costs, size.counts) / size.seconds - 1) for size in sizes]
    assert max(map(abs, held_out_errors(sizes))) > max(fitted)


def test_counts_are_the_steps_operations_split_in_two() -> None:
    config = load_run_config("tiny", ["model.vocab_size=512"])
    encoders, vocabulary, parameters, step = count_costs(config, 1000, 150, 77)
    sizes = config.model.generator(512), config.model.discriminator(512)
    assert encoders + vocabulary == step_flops(*sizes, 1000, 150, config.data.sequence_length)
    assert vocabulary == 3 * 2 * 150 * config.model.hidden_size * 512 and (parameters, step) == (77, 1.0)


def test_every_change_is_a_recipe_that_can_be_run() -> None:
    config = load_run_config("tiny")
    changed = [load_run_config("tiny", change_sizes(config, change)) for change in CHANGES]
    assert len({repr(one) for one in changed}) == len(CHANGES)
    assert changed[-4].model.hidden_size == 2 * config.model.hidden_size


def test_command_measures_fits_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    end_own_tests(monkeypatch, code=0)
    monkeypatch.setattr(scaling, "CHANGES", CHANGES[:6])
    small = [key for key in SMALLEST if not key.startswith(("schedule", "batch.global"))]
    words = ["--recipe", "tiny", "--rounds", "1", "--output", str(tmp_path), "model.vocab_size=300", *small]
    assert main(words) == 0
    rows = [json.loads(line) for line in (tmp_path / "scaling.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and all(row["seconds"] > 0 for row in rows)
    assert rows[5]["counts"]["vocabulary, operations"] == 4 * rows[0]["counts"]["vocabulary, operations"]
    printed = capsys.readouterr().out
    assert "Error on sizes not fitted: median" in printed and "| base | 4,194,304 |" in printed


def test_red_tests_give_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end_own_tests(monkeypatch, code=1)
    assert main(["--output", str(tmp_path)]) == 1
    assert list(tmp_path.iterdir()) == []
