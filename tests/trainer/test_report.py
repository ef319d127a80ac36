"""The page about a run: what it shows, and what it says where there is nothing to show."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from disentangled.trainer.report import describe_state, main, write_report


def training_row(step: int) -> dict[str, float]:
    return {
        "step": step,
        "mlm_loss": 7.0 - step / 100,
        "rtd_loss": 0.4,
        "rtd_auc": 0.5 + step / 1000,
        "rtd_balanced_accuracy": 0.5,
        "replaced_fraction": 0.13,
        "generator_learning_rate": 1e-3,
        "discriminator_learning_rate": 5e-4,
        "tokens_per_second": 1000.0,
        "seconds_per_step": 2.0,
        "remaining_seconds": 3900.0,
        "time": 1e9 + 2 * step,
    }


def make_run(folder: Path, rows: list[dict[str, float]], events: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir()
    config = {"schedule": {"warmup_steps": 100, "total_steps": 2000}, "run": {"dir": "<b>here</b>"}}
    (folder / "run.json").write_text(json.dumps({"config": config}), encoding="utf-8")
    for name, lines in (("metrics.jsonl", rows), ("events.jsonl", events or [])):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


class Reader(HTMLParser):
    """Checks that tags are closed in order, and keeps what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "link"):
            self.open.append(tag)
        sources = [str(value) for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.fetched += [source for source in sources if not source.startswith("#")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_holds_all_that_it_shows(tmp_path: Path) -> None:
    held_out = {"step": 20, "validation_mlm_loss": 6.5, "validation_rtd_auc": 0.61}
    events = [
        {"time": 1e9, "step": 0, "kind": "start", "text": "2 ranks"},
        {"time": 1e9 + 30, "step": 10, "kind": "resume", "text": "<i>"},
        {"time": 1e9 + 39, "step": 15, "kind": "rollback", "text": "back to 10"},
    ]
    run = make_run(tmp_path / "my_run", [training_row(10), training_row(20), held_out], events)
    page = write_report(run, unigram_cross_entropy_nats=6.2).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.open == [] and reader.fetched == []
    assert "<script" not in page and "@import" not in page and "url(http" not in page
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page
    assert page.count("<svg ") == 8  # the time line and seven panels
    assert "by frequency alone" in page
    assert '<td>validation_rtd_auc</td><td class="number">0.61</td>' in page
    assert '<td>mlm_loss</td><td class="number">6.8</td>' in page
    assert "<span>restarts</span><b>1</b>" in page and "<span>faults</span><b>1</b>" in page
    assert "back to 10" in page
    assert "Warm-up lasts until step 100" in page
    assert "<b>here</b>" not in page and "<i>" not in page  # what comes from a file is escaped
    assert len(set(re.findall(r'\bid="([^"]+)"', page))) == len(re.findall(r'\bid="([^"]+)"', page))


def test_a_collapsed_discriminator_is_told_from_a_good_one(tmp_path: Path) -> None:
    good = [training_row(step) for step in range(100, 1100, 100)]
    good += [training_row(1000) | {"step": step, "rtd_auc": 0.83} for step in range(1100, 2100, 100)]
    collapsed = [row | {"rtd_auc": 0.5} if row["step"] > 1000 else row for row in good]
    for name, rows in (("good", good), ("collapsed", collapsed)):
        page = write_report(make_run(tmp_path / name, rows)).read_text(encoding="utf-8")
        assert f'class="verdict {name}"' in page
        assert ("has collapsed" in page) == (name == "collapsed")


def test_state_of_a_run_is_told_by_what_it_wrote_last() -> None:
    rows = [training_row(10), training_row(20)]
    last = rows[-1]["time"]

    def event(kind: str, step: int = 20, text: str = "") -> dict[str, Any]:
        return {"time": last, "step": step, "kind": kind, "text": text}

    assert describe_state(rows, [], 2000, last + 45) == (
        "Step 20 of 2,000: under way, about 1h05 left; last written 0:45 ago."
    )
    assert "under way" in describe_state(rows, [event("stop"), event("resume")], 2000, last + 45)
    assert "killed or is stuck" in describe_state(rows, [event("start")], 2000, last + 3600)
    assert describe_state(rows, [event("stop", text="SIGTERM")], 2000, last) == (
        "Step 20 of 2,000: stopped, SIGTERM. The same command goes on."
    )
    assert describe_state(rows, [event("done", 2000)], 2000, last) == "Step 2,000 of 2,000: done."


def test_rows_of_an_older_run_are_enough(tmp_path: Path) -> None:
    newer = ("time", "remaining_seconds", "seconds_per_step")
    old = {name: value for name, value in training_row(1).items() if name not in newer}
    page = write_report(make_run(tmp_path / "run", [old])).read_text(encoding="utf-8")
    assert "No times were logged." in page and "No events were logged." in page


@pytest.mark.parametrize(
    ("rows", "reason"),
    [(None, "holds no run"), ([], "holds no step yet"), ([{"step": 1, "x": 2}], "holds no step yet")],
)
def test_report_without_rows_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, float]] | None, reason: str
) -> None:
    run = tmp_path / "run"
    if rows is not None:
        make_run(run, rows)
    assert main(["--run", str(run)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and reason in lines[0] and str(run) in lines[0]
    assert not (run / "report.html").exists()
