"""The data benchmark on a tiny text without any peer: rows, page, goals, and what is said of what is absent.

Not here: the peers' adapters, which need the peers, and figures of any kind.
"""

import argparse
import contextlib
import io
import json
import pydoc_data.topics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.data import __main__ as command
from benchmarks.data import goals, our_data, report, rounds
from benchmarks.data.environment import results_folder_name
from benchmarks.data.integrity import DAMAGES, Reader, judge, read_in_child
from benchmarks.data.lift import lift_definitions
from benchmarks.data.maskers import ROWS, TOKENS
from benchmarks.data.packing import concatenate_and_cut, one_piece_a_row, pack_ours
from benchmarks.data.picture import draw_picture
from benchmarks.data.prepare import run_once
from benchmarks.data.readers import cut_pieces, cut_windows
from benchmarks.data.text import Text, make_text, read_documents, read_json_lines
from tests.benchmarks.own_tests import end_own_tests

PEERS = ("datasets", "litdata", "streaming", "datatrove", "transformers")
TEXT_BYTES = 150_000
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of Python's language reference, ten lines a document: some are held out, whatever its version."""
    path = tmp_path_factory.mktemp("source") / "topics.txt"
    lines = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines() if line.strip()]
    documents = ["\n".join(lines[first : first + 10]) for first in range(0, len(lines), 10)]
    path.write_text("\n\n".join(documents)[: TEXT_BYTES - 10_000], encoding="utf-8")  # all of it is taken
    return path


@pytest.fixture(scope="module")
def text(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Text:
    return make_text(source, TEXT_BYTES, None, tmp_path_factory.mktemp("text") / "text")


@dataclass(frozen=True)
class Run:
    code: int
    printed: str
    rows: list[dict[str, Any]]
    folder: Path


def run(folder: Path, *arguments: str, tests_exit_code: int = 0) -> Run:
    """The command in this process, with tests that do nothing and peers that are surely missing."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        end_own_tests(patch, code=tests_exit_code)
        patch.setattr(rounds, "SAMPLE_SECONDS", 0.001)
        for name in PEERS:
            patch.setitem(sys.modules, name, None)
        code = command.main([*arguments, "--repeats", "1", "--order-samples", "65536", "--output", str(folder)])
    path = folder / "data.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return Run(code, printed.getvalue(), rows, folder)


@pytest.fixture(scope="module")
def whole(source: Path, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Every part, of preparation ours and bare encoding only: what others have installed is not tested here."""
    return run(
        tmp_path_factory.mktemp("results"), "--text", str(source), "--tokenizer", str(text.tokenizer),
        "--megabytes", "0.1", "--long-megabytes", "0.15", "--implementations", "ours,bare",
    )  # fmt: skip


def select(rows: list[dict[str, Any]], part: str, name: str) -> dict[str, dict[str, Any]]:
    return {row["case"]: row for row in rows if (row["part"], row["implementation"]) == (part, name)}


def test_every_part_has_rows_of_ours_with_their_environment(whole: Run) -> None:
    assert whole.code == 0, whole.printed
    for part in command.PARTS:
        ours = select(whole.rows, part, "ours")
        assert ours and all(row["error"] is None for row in ours.values()), part
    for row in whole.rows:
        assert row["command"].startswith("python -m benchmarks.data --text")
        assert row["versions"]["numpy"] == np.__version__
        assert "cores" in row["device"]
    assert results_folder_name().startswith("cpu-")


def test_preparation_is_timed_and_gives_the_same_bytes(whole: Run) -> None:
    ours = select(whole.rows, "prepare", "ours")
    assert {"1 workers", "2 workers", "default range, long text", "same bytes"} <= ours.keys()
    for case in ("1 workers", "2 workers"):
        figures = ours[case]["figures"]
        assert len(figures["megabytes_per_second"]) == 1 and figures["megabytes_per_second"][0] > 0
        assert figures["megabytes_per_cpu_second"][0] > 0
        assert figures["bytes_per_token"] >= 2
        assert figures["peak_process_bytes"] > 10_000_000
    bare = select(whole.rows, "prepare", "bare")
    assert bare["1 workers"]["figures"]["num_tokens"] == ours["1 workers"]["figures"]["num_tokens"]
    assert ours["same bytes"]["figures"]["two_workers_equal"] and ours["same bytes"]["figures"]["killed_equal"]


def test_damaged_shards_of_ours_are_reported_by_name(whole: Run) -> None:
    ours = select(whole.rows, "integrity", "ours")
    assert ours["whole"]["figures"]["verdict"] == "same tokens"
    for damage in DAMAGES[1:]:
        assert ours[damage]["figures"]["verdict"].endswith(", named")


def test_absent_peers_are_one_line_each_and_not_in_the_tables(whole: Run) -> None:
    absent = [row for row in whole.rows if row["error"] is not None]
    assert {row["implementation"] for row in absent} == {"datasets", "huggingface", "litdata", "mds"}
    page = (whole.folder / "data.md").read_text("utf-8")
    tables, listed = page.split("## Absent or failed")
    for row in absent:
        assert row["error"].startswith("absent: ")
        assert f"\n- {row['implementation']}, " in listed
        assert f"\n| {row['implementation']} |" not in tables
    assert listed.count("\n- ") == len({(row["implementation"], row["error"]) for row in absent})


def test_batches_do_not_depend_on_how_a_step_is_shared_out(whole: Run) -> None:
    order = select(whole.rows, "order", "ours")
    figures = order["same batches"]["figures"]
    assert figures["num_equal"] == figures["num_ways"] > 10
    assert order["mixture"]["figures"]["largest_error"] < 1e-4


def test_goals_are_judged_in_page_and_output(whole: Run) -> None:
    page = (whole.folder / "data.md").read_text("utf-8")
    for number in range(1, 14):
        assert f"\n| D{number} |" in page
        assert f"\n| D{number} |" in whole.printed
    assert "| D10 | truncated, flipped, missing, foreign: reported by name | all four, by name | yes |" in page
    assert "| D5 | windows at random: >= 20x megatron | not measured | - |" in page


def test_red_tests_give_no_number(tmp_path: Path) -> None:
    red = run(tmp_path, tests_exit_code=1)
    assert red.code == 1
    assert "red tests, so no numbers" in red.printed
    assert list(tmp_path.iterdir()) == []


def test_missing_clone_is_absent(text: Text, tmp_path: Path) -> None:
    options = argparse.Namespace(scratch=tmp_path, megatron=tmp_path / "nowhere")
    with pytest.raises(rounds.Absent, match="nowhere holds no folder megatron"):
        run_once("megatron", 1, text, options)


def test_text_is_the_same_in_every_form(source: Path, text: Text) -> None:
    documents = list(read_documents(source))
    assert len(documents) > 8
    assert list(read_documents(text.plain)) == documents
    assert list(read_json_lines(text.json_lines)) == documents
    assert [document for part in text.parts for document in read_json_lines(part)] == documents
    assert (text.num_documents, text.num_bytes) == (len(documents), text.plain.stat().st_size)


def test_text_ends_after_the_wanted_bytes(source: Path, text: Text, tmp_path: Path) -> None:
    short = make_text(source, 20_000, text.tokenizer, tmp_path / "short")
    kept = list(read_documents(short.plain))
    assert kept == list(read_documents(source))[: len(kept)]
    assert sum(len(document.encode()) + 2 for document in kept[:-1]) < 20_000 <= short.num_bytes


def test_packing_counts_cuts_and_padding() -> None:
    # two documents of 300 tokens, one of 1,000
    offsets = np.array([0, 300, 600, 1600])
    padded = one_piece_a_row(offsets)
    assert padded["real_share"] == 1600 / (4 * TOKENS)
    joined = concatenate_and_cut(offsets)
    # 510 lies in the second document: one of two that fit is cut
    assert joined["avoidable_cuts_share"] == 0.5
    assert joined["real_share"] == 1600 / (4 * TOKENS)
    ours = pack_ours(offsets)
    assert ours["avoidable_cuts_share"] == 0
    assert ours["real_share"] == 1600 / (4 * TOKENS)
    assert ours["dropped_share"] == 0


def test_cutting_keeps_every_token() -> None:
    flat = np.arange(1600)
    pieces = list(cut_pieces(flat, np.array([0, 300, 600, 1600])))
    assert [len(piece) for piece in pieces] == [300, 300, 510, 490]
    assert np.array_equal(np.concatenate(pieces), flat)
    assert cut_windows(flat).shape == (3, TOKENS)


def test_ratio_is_the_median_over_repetitions() -> None:
    assert rounds.median_ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == 2.0


def test_rows_of_different_runs_are_not_compared() -> None:
    def row(name: str, run_name: str, rate: float) -> dict[str, Any]:
        return {"part": "gather", "case": "[64, 512]", "implementation": name, "run": run_name,
                "figures": {"megatokens_per_cpu_second": [rate]}}  # fmt: skip

    def judged(run_name: str) -> goals.Verdict:
        verdicts = goals.judge_goals([row("ours", "a", 50.0), row("litdata", run_name, 5.0)])
        return next(verdict for verdict in verdicts if "litdata" in verdict.wanted and verdict.goal == "D5")

    assert judged("a") == goals.Verdict("D5", "windows at random: >= 5x litdata", "10x", True)
    assert judged("b").holds is None


def test_failure_of_ours_is_raised_and_of_a_peer_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SAMPLE_SECONDS", 0.001)

    def broken() -> rounds.Call:
        raise OSError("no such thing")

    rows = list(rounds.measure_case("gather", "case", {"ours": lambda: lambda: 1000, "peer": broken}, 2))
    assert [(row.implementation, row.error) for row in rows] == [("peer", "OSError: no such thing"), ("ours", None)]
    with pytest.raises(OSError, match="no such thing"):
        list(rounds.measure_case("gather", "case", {"ours": broken}, 1))


def test_reader_that_fails_crashes_or_lies_is_judged(tmp_path: Path) -> None:
    def crash(folder: Path) -> Any:
        import os

        os._exit(7)

    def refuse(folder: Path) -> Any:
        raise ValueError(f"{folder / 'a.bin'}: damaged")

    def verdict(reader: Reader, expected: str | None = None) -> str:
        return judge(read_in_child(reader, tmp_path), expected, "a.bin")

    lies = Reader(lambda folder: [np.arange(3)], iter, "*.bin")
    digest = read_in_child(lies, tmp_path)["digest"]
    assert verdict(lies, digest) == "same tokens"
    assert verdict(lies, "another") == "SILENT: wrong tokens"
    assert verdict(Reader(refuse, iter, "*.bin")) == "error at open, named"
    assert verdict(Reader(crash, iter, "*.bin")) == "error at open, not named"


def test_definitions_are_lifted_without_the_rest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rival.py"
    path.write_text("import not_installed\nWIDTH = 3\ndef area(x: Unknown):\n    return x * WIDTH\n", encoding="utf-8")
    assert lift_definitions(path, {"area", "WIDTH"}, {}).area(2) == 6
    with pytest.raises(ModuleNotFoundError, match="defines no volume"):
        lift_definitions(path, {"volume"}, {})


def test_picture_needs_a_ratio(tmp_path: Path) -> None:
    def row(name: str) -> dict[str, Any]:
        made = rounds.Row("gather", f"[{ROWS}, {TOKENS}]", name, figures={"megatokens_per_cpu_second": [3.0]})
        return asdict(made) | {"run": "a", "device": "cpu", "date": "2026-01-01"}

    assert not draw_picture([row("ours")], tmp_path / "picture.png")
    assert draw_picture([row("ours"), row("mds")], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


def test_page_of_old_rows_is_made_again(whole: Run) -> None:
    page = whole.folder / "data.md"
    before = page.read_text("utf-8")
    page.unlink()
    with contextlib.redirect_stdout(io.StringIO()):
        assert command.main(["--report-only", str(whole.folder / "data.jsonl")]) == 0
    assert page.read_text("utf-8") == before
    assert report.read_rows(whole.folder / "data.jsonl")


def test_tests_that_guard_the_numbers_exist() -> None:
    root = Path(__file__).parents[2]
    assert all((root / path).exists() for path in our_data.TESTS)
