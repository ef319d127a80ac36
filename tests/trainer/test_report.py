"""The page about a run: what it shows, and what it says where there is nothing to show."""

import base64
import io
import json
import re
from pathlib import Path

import matplotlib.image
import pytest

from disentangled.trainer.report import main, write_report


def training_row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "mlm_loss": 7.0 - step / 100,
        "rtd_loss": 0.4,
        "rtd_auc": 0.5 + step / 1000,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 5e-4,
        "tokens_per_second": 1000.0,
    }


def make_run(folder: Path, rows: list[dict[str, float]]) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"config": {"run": {"dir": "<b>here</b>"}}}), encoding="utf-8")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def test_report_holds_a_picture_and_the_last_values(tmp_path: Path):
    held_out = {"step": 20, "validation_mlm_loss": 6.5, "validation_rtd_auc": 0.61}
    run = make_run(tmp_path / "run", [training_row(10), training_row(20), held_out])
    page = write_report(run, unigram_cross_entropy_nats=6.2).read_text(encoding="utf-8")
    encoded = re.search(r"data:image/png;base64,([^\"]+)", page)
    assert encoded
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded[1])))
    assert picture.shape[0] > 400 and picture.std() > 0.05  # drawn on, not blank
    assert "<td>validation_rtd_auc</td><td>0.61</td>" in page
    assert "<td>mlm_loss</td><td>6.8</td>" in page
    assert "<b>here</b>" not in page  # what comes from a file is escaped


def test_report_of_a_run_without_evaluation_is_written(tmp_path: Path):
    assert write_report(make_run(tmp_path / "run", [training_row(1)])).is_file()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(None, "holds no run"), ([], "holds no step yet"), ([{"step": 1, "x": 2}], "holds no step yet")],
)
def test_report_without_rows_is_one_line(tmp_path: Path, capsys, rows, reason: str):
    run = tmp_path / "run"
    if rows is not None:
        make_run(run, rows)
    assert main(["--run", str(run)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and reason in lines[0] and str(run) in lines[0]
    assert not (run / "report.html").exists()
