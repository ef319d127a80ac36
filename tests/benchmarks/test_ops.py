"""The benchmark command at small sizes on a CPU: rows, picture, table, and what it does when something is wrong.

Not here: the adapters of libraries that need a GPU, and figures of any kind.
"""

import contextlib
import io
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import measure, ops, report
from benchmarks.attention_problem import (
    Setting,
    builtin_text_lengths,
    count_flops,
    make_problem,
    shard_text_lengths,
)
from benchmarks.measure import PASSES
from benchmarks.rivals import IMPLEMENTATIONS, Implementation, Prepared
from tests.benchmarks.own_tests import end_own_tests

SMALL = (
    "--lengths", "128,32", "--tokens", "256", "--heads", "2", "--dtypes", "fp32",
    "--cases", "dense,packed,padded+dropout", "--implementations", "torch,eager,sdpa,flashdeberta",
)  # fmt: skip
PNG = b"\x89PNG"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@dataclass(frozen=True)
class Run:
    code: int
    printed: str
    rows: list[dict[str, Any]]
    folder: Path


def run(folder: Path, *arguments: str, tests_exit_code: int = 0) -> Run:
    """The command in this process, with tests that do nothing and a library that is surely missing."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        end_own_tests(patch, code=tests_exit_code)
        patch.setattr(measure, "SAMPLE_MILLISECONDS", 1)
        patch.setitem(sys.modules, "flashdeberta", None)
        code = ops.main([*arguments, "--output", str(folder)])
    path = folder / "ops.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    return Run(code, printed.getvalue(), rows, folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("results"), *SMALL)


def rows_of(rows: list[dict[str, Any]], implementation: str, case: str) -> list[dict[str, Any]]:
    return [row for row in rows if (row["implementation"], row["case"]) == (implementation, case)]


def test_rows_carry_settings_environment_and_ordered_percentiles(small: Run) -> None:
    assert small.code == 0
    # no packed input for transformers, no dropout for flashdeberta
    assert len(small.rows) == 2 * (3 + 2 + 3 + 2)
    timed = [row for row in small.rows if "error" not in row]
    for name in ("torch", "eager", "sdpa"):
        assert {row["length_tokens"] for row in rows_of(timed, name, "dense")} == {128, 32}
    for row in timed:
        assert row["device"] == ops.device_name()
        assert row["versions"]["torch"] == version("torch")
        assert row["command"].startswith("python -m benchmarks.ops --lengths")
        assert (row["heads"], row["head_width"], row["dtype"], row["total_tokens"]) == (2, 64, "fp32", 256)
        for name in PASSES:
            p20, median, p80 = (row[f"{name}_{key}_milliseconds"] for key in ("p20", "median", "p80"))
            assert 0 < p20 <= median <= p80
            assert row[f"{name}_tflops"] > 0


def test_errors_are_given_where_they_mean_something(small: Run) -> None:
    for ours, eager in zip(rows_of(small.rows, "torch", "dense"), rows_of(small.rows, "eager", "dense"), strict=True):
        assert len(ours["relative_errors"]) == 6
        for name, error in ours["relative_errors"].items():
            assert error <= 2 * eager["relative_errors"][name] + torch.finfo(torch.float32).eps
    for case in ("packed", "padded+dropout"):
        for row in rows_of(small.rows, "torch", case):
            # one wrong decision, slot or neighbour is far above the root of a rounding error
            assert max(row["relative_errors"].values()) < torch.finfo(torch.float32).eps ** 0.5
    for row in rows_of(small.rows, "eager", "padded+dropout") + rows_of(small.rows, "sdpa", "dense"):
        assert row["relative_errors"] is None


def test_missing_rival_is_a_row_with_its_error(small: Run) -> None:
    missing = rows_of(small.rows, "flashdeberta", "dense")
    assert len(missing) == 2
    for row in missing:
        assert "ModuleNotFoundError" in row["error"]
        assert report.MEDIAN not in row
    assert "flashdeberta, 4 rows, N=128, 2 heads, fp32, dense, 256 tokens: ModuleNotFoundError" in small.printed


def test_picture_and_table_come_at_the_end(small: Run) -> None:
    picture = (small.folder / "ops.png").read_bytes()
    assert picture.startswith(PNG)
    table = small.printed[small.printed.index("2 heads, fp32, dense, 256 tokens: forward and backward, ours (torch)") :]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["N", "32", "128"]
    assert f"picture: {small.folder / 'ops.png'}" in table


def test_red_tests_give_no_number(tmp_path: Path) -> None:
    red = run(tmp_path, *SMALL, tests_exit_code=1)
    assert red.code == 1
    assert "red tests, so no numbers" in red.printed
    assert " ms" not in red.printed
    assert list(tmp_path.iterdir()) == []


def test_failure_of_ours_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(problem: Any) -> Prepared:
        raise RuntimeError("no such kernel")

    monkeypatch.setitem(IMPLEMENTATIONS, "torch", Implementation("ours (torch)", broken))
    failed = run(tmp_path, *SMALL[:8], "--cases", "dense", "--implementations", "torch")
    assert failed.code == 1
    assert [row["error"] for row in failed.rows] == ["RuntimeError: no such kernel"] * 2
    assert "nothing to compare" in failed.printed
    assert not (tmp_path / "ops.png").exists()


def jobs_of(*arguments: str) -> list[ops.Job]:
    return ops.plan(ops.make_parser().parse_args(arguments))


def test_plan_begins_with_what_matters_most() -> None:
    jobs = jobs_of("--implementations", "triton,flex,eager")
    first = [(job.setting.length_tokens, job.implementation) for job in jobs[:4]]
    assert first == [(512, "triton"), (512, "eager"), (4096, "triton"), (4096, "eager")]
    assert all((job.setting.heads, job.setting.dtype, job.setting.case) == (12, "bf16", "dense") for job in jobs[:14])
    # slow starters wait for all others of the same importance
    assert [job.implementation for job in jobs[14:21]] == ["flex"] * 7
    assert not any(job.implementation == "eager" and job.setting.layout == "packed" for job in jobs)
    assert not any(job.implementation == "flex" and job.setting.dropout for job in jobs)


def test_rows_without_time_are_left_out_and_named() -> None:
    jobs = jobs_of(*SMALL)
    assert list(ops.run_jobs(jobs, builtin_text_lengths(), 10, deadline=time.monotonic())) == []
    lines = list(ops.left_out(jobs[1:]))
    assert lines[0] == f"left out for lack of time, {len(jobs) - 1} rows:"
    assert "  2 heads, fp32, dense, torch: N = 32" in lines
    assert "  2 heads, fp32, packed, sdpa: N = 128, 32" in lines
    assert list(ops.left_out([])) == []


def test_row_over_its_time_is_a_failure_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleepy(problem: Any) -> Prepared:
        time.sleep(60)
        raise AssertionError("was not stopped")

    monkeypatch.setitem(IMPLEMENTATIONS, "eager", Implementation("sleepy", sleepy))
    jobs = jobs_of("--lengths", "32", "--tokens", "64", "--heads", "2", "--dtypes", "fp32", "--cases", "dense",
                   "--implementations", "eager,sdpa")  # fmt: skip
    slow, next_one = ops.run_jobs(jobs, builtin_text_lengths(), 3, deadline=time.monotonic() + 600)
    assert slow["error"] == "TimeoutError: longer than 3 s, compilation included"
    assert report.MEDIAN in next_one


def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ops.make_parser().parse_args(["--implementations", "torch,trition"])
    assert "'trition' is unknown: give some of triton, torch" in capsys.readouterr().err


def fake_row(implementation: str, milliseconds: float, length: int = 512, **fields: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-21", "device": "NVIDIA H200", "implementation": implementation, "length_tokens": length,
        "heads": 12, "dtype": "bf16", "case": "dense", "total_tokens": 16_384, "head_width": 64,
        report.MEDIAN: milliseconds, report.MEMORY: 2**20 if implementation == "triton" else 2**23,
    } | fields  # fmt: skip


def goal_at_512(*rows: dict[str, Any]) -> str:
    line = next(line for line in report.table_lines(rows) if line.startswith("   512"))
    return line.rsplit("  ", 1)[1]


def test_goals_are_held_against_the_better_library() -> None:
    ours, sdpa = fake_row("triton", 1.0), fake_row("sdpa", 0.5)
    autotuned, plain = fake_row("disentangled_flash_autotuned", 3.5), fake_row("disentangled_flash", 4.0)
    assert goal_at_512(ours, sdpa, plain, autotuned) == "held"
    assert goal_at_512(ours, sdpa, plain, autotuned | {report.MEDIAN: 2.5}) == "missed >= 3x: 2.50"
    assert goal_at_512(ours, sdpa | {report.MEDIAN: 0.25}, plain) == "missed >= 40% of SDPA: 0.25"
    assert goal_at_512(ours, sdpa, plain, fake_row("flex", 0.9)) == "missed never slower: 0.90"
    assert goal_at_512(ours, sdpa, plain | {report.MEMORY: 2**21}) == "missed memory <= 0.25: 0.50"
    assert goal_at_512(ours, plain) == "unknown >= 40% of SDPA"
    assert goal_at_512(ours | {"dtype": "fp16"}) == "not for this device or dtype"


def test_picture_only_takes_the_newest_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [fake_row("triton", 9.0), fake_row("flashdeberta", 4.0), fake_row("triton", 2.0)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert ops.main(["--picture-only", str(path)]) == 0
    assert "   512     2.000             4.000 FlashDeBERTa" in capsys.readouterr().out
    assert (tmp_path / "rows.png").read_bytes().startswith(PNG)


def test_flops_by_hand() -> None:
    # 1 head of width 64, documents of 3 and 600 tokens: 9 + 360,000 pairs; 3 * 5 and 600 * 512 products with rows
    content, positions = 128 * 360_009, 128 * 307_215
    assert count_flops((3, 600), 1, True) == (2 * content + 2 * positions, 5 * content + 4 * positions)
    assert count_flops((3, 600), 1, False) == (2 * content, 5 * content)


@pytest.mark.parametrize("case", ["dense", "padded", "packed"])
def test_problem_has_documents_of_the_lengths_given(case: str) -> None:
    problem = make_problem(Setting(8, 2, "fp32", case, 24), (5, 11, 3), "cpu")
    assert problem.lengths == {"dense": (8, 8, 8), "padded": (8, 5, 8), "packed": (5, 8, 3, 5, 3)}[case]
    shape = problem.query.shape[:-2]
    assert shape == ((24,) if case == "packed" else (3, 8))
    filled = problem.grad_output.abs().sum((-1, -2)).flatten() > 0
    assert int(filled.sum()) == sum(problem.lengths)
    if case == "packed":
        assert problem.cu_seqlens is not None and problem.cu_seqlens.tolist() == [0, 5, 13, 16, 21, 24]
    else:
        assert problem.live is not None and torch.equal(problem.live.flatten(), filled)
    assert problem.lengths[problem.checked_document] == (8 if case == "dense" else 5)


def test_lengths_come_from_the_shards(shards: Path) -> None:
    lengths = shard_text_lengths(shards)
    counts = json.loads((shards / "manifest.json").read_text("utf-8"))["counts"]["train"]
    assert len(lengths) == counts["num_documents"]
    assert sum(lengths) == counts["num_tokens"] + 2 * counts["num_documents"]
    assert lengths == shard_text_lengths(shards)


def test_device_folder_is_short() -> None:
    assert ops.device_folder("NVIDIA H200") == "h200"
    assert ops.device_folder("NVIDIA A100-SXM4-80GB") == "a100-sxm4-80gb"
    assert ops.device_folder("cpu") == "cpu"
