import re
import shutil
import sys
from pathlib import Path

import pytest

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer import plan
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.run_data import describe_sources, open_windows
from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.launching import run_command
from tests.trainer.tiny_run import SMALLEST, tiny_config


@pytest.fixture(scope="module")
def mixed_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources, the first about nine times as large as the second."""
    folder = tmp_path_factory.mktemp("mixed")
    write_txt(folder / "large.txt", make_documents(450))
    write_txt(folder / "small.txt", make_documents(500)[450:])
    sources = "".join(f'[[source]]\nname = "{name}"\ninput = ["{name}.txt"]\n' for name in ("large", "small"))
    (folder / "sources.toml").write_text(sources)
    built = run_command(
        sys.executable, "-m", "disentangled.data_prep.build_corpus", "--sources", str(folder / "sources.toml"),
        "--output", str(folder / "shards"), "--train-tokenizer", "--vocab-size", "512", "--validation-fraction", "0.1",
    )  # fmt: skip
    assert built.code == 0, built
    return folder / "shards"


def run_plan(capsys: pytest.CaptureFixture[str], shards: Path, *arguments: str) -> str:
    assert plan.main(["--recipe", "tiny", *SMALLEST, f"data.shards={shards}", *arguments]) == 0
    return capsys.readouterr().out


def test_rows_are_compared_at_several_lengths(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_plan(capsys, shards, "--lengths", "16", "64", "32")
    table = [line.split() for line in out.splitlines()[1:4]]
    assert [line[0] for line in table] == ["16", "32", "64"]
    rows = [int(line[1].replace(",", "")) for line in table]
    assert rows[0] > rows[1] > rows[2]
    num_tokens = load_manifest(shards).counts["train"].num_tokens
    for length, num_rows, line in zip((16, 32, 64), rows, table, strict=True):
        assert float(line[3].rstrip("%")) / 100 * num_rows * length == pytest.approx(num_tokens, rel=0.05)
        assert int(line[4].replace(",", "")) == -(-num_rows // 8)


def test_epochs_of_each_source_are_those_of_the_run(mixed_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_plan(capsys, mixed_shards, "data.mixture_alpha=0.0", "schedule.total_steps=100")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.startswith(("large", "small"))}
    assert lines["large"][3] == lines["small"][3] == "50.00%"
    for line in lines.values():
        assert float(line[4]) == pytest.approx(400 / int(line[2].replace(",", "")), abs=0.005)


def test_sample_is_drawn_as_packed_and_masked(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run_plan(capsys, shards, "--sample", "5", "data.sequence_length=64")
    bar = re.findall(r"\|(.*)\|", out)
    assert len(bar) == 1 and len(bar[0]) == 64
    documents = re.findall(r"^ +\d+ tokens +(\d+) to +(\d+)  (.*)$", out, re.MULTILINE)
    assert documents
    for start, end, text in documents:
        assert (bar[0][int(start)], bar[0][int(end)]) == ("[", "]") and text.strip()
    assert f"({bar[0].count('#')} tokens)" in out and bar[0].count("#") > 0
    assert max(map(len, out.splitlines())) <= 80
    assert out == run_plan(capsys, shards, "--sample", "5", "data.sequence_length=64")
    assert bar != re.findall(r"\|(.*)\|", run_plan(capsys, shards, "--sample", "6", "data.sequence_length=64"))


def test_memory_is_planned_with_and_without_shards(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = ("--memory", "--engine", "fp32_cpu", "--ranks", "2")
    table, rows = run_plan(capsys, shards, *memory).split("\n\n", 1)
    values = {line[:14].strip(): float(line[14:]) for line in table.splitlines()[1:]}
    assert values.pop("together") == pytest.approx(sum(values.values()), abs=0.001 * len(values))
    assert "tokens a row" in rows
    assert plan.main(["--recipe", "tiny", *SMALLEST, "model.vocab_size=576", *memory]) == 0
    assert capsys.readouterr().out.rstrip() == table


def test_several_processes_give_the_same_plan(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("plans")))
    run_plan(capsys, copy, "--processes", "2")
    two = {path.name: path.read_bytes() for path in (copy / "plans").iterdir()}
    shutil.rmtree(copy / "plans")
    run_plan(capsys, copy)
    assert two == {path.name: path.read_bytes() for path in (copy / "plans").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data.shards=/nowhere"], "no manifest.json"),
        (["data.shards="], "data.shards is not set"),
        (["--sample", "-1"], "--sample -1: must not be negative"),
        (["--processes", "0"], "--processes 0: must be at least 1"),
        (["--lengths", "3"], "data.sequence_length is 3"),
        (["data.packing=tight"], "data.packing is 'tight': it must be one of best_fit, concatenate, one_piece"),
        (["data.max_epochs=0.001"], "data.max_epochs 0.001 allows"),
        (["--memory"], "--memory and --probe-steps need the engine: add --engine FILE"),
        (["--memory", "--engine", "fp32_cpu", "--ranks", "0"], "--ranks 0: must be at least 1"),
        (["--memory", "--engine", "fp32_cpu", "--ranks", "3"], "batch.global_sequences 8 is not a multiple"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_mistake_is_one_line(
    shards: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert plan.main(["--recipe", "tiny", *SMALLEST, f"data.shards={shards}", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_run_lists_its_sources_as_the_plan_does(mixed_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(mixed_shards, "data.mixture_alpha=0.3")
    lines = describe_sources(config, open_windows(config, LocalDataset(mixed_shards), "train"))
    assert [line.split()[0] for line in lines] == ["source", "large", "small"]
    assert "\n".join(lines) in run_plan(capsys, mixed_shards, "data.mixture_alpha=0.3")
