import time
from pathlib import Path

import pytest

from disentangled.trainer.events import EVENTS_FILE, EventLog, read_events


def test_events_are_added_in_order_by_any_number_of_processes(tmp_path: Path) -> None:
    before = time.time()
    EventLog(tmp_path).write("start", 0, "2 ranks")
    log = EventLog(tmp_path)
    log.write("save", 10, "checkpoint\nin two lines", seconds=1.5, path=tmp_path)
    start, save = read_events(tmp_path)
    assert (start["kind"], start["step"], start["text"]) == ("start", 0, "2 ranks")
    assert (save["kind"], save["text"], save["seconds"]) == ("save", "checkpoint in two lines", 1.5)
    assert save["path"] == str(tmp_path)
    assert before - 1 <= start["time"] <= save["time"] <= time.time() + 1


def test_a_line_cut_short_costs_itself_only(tmp_path: Path) -> None:
    log = EventLog(tmp_path)
    log.write("start", 0, "")
    with (tmp_path / EVENTS_FILE).open("a") as file:
        file.write('{"time": 1, "st')
    log.write("resume", 5, "")
    assert [event["kind"] for event in read_events(tmp_path)] == ["start", "resume"]


def test_a_full_disk_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / EVENTS_FILE).symlink_to("/dev/full")  # every write to it fails with ENOSPC
    EventLog(tmp_path).write("save", 7, "")
    warning = capsys.readouterr().err
    assert warning.count("\n") == 1
    assert "'save' of step 7" in warning and "No space left" in warning


def test_no_file_means_no_events(tmp_path: Path) -> None:
    assert read_events(tmp_path) == []
    (tmp_path / EVENTS_FILE).write_text('[1]\n{"step": 3}\n')  # JSON, but no events
    assert read_events(tmp_path) == []
