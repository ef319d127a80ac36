"""What may be wrong, in one process and on three ranks: one line names it, exit code 2, the rest is kept.

Each case runs the command as a user does, which takes seconds; test_build_failures.py has most within a process.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disentangled.data_prep.shard_schema import SPLITS, load_manifest
from tests.data_prep.test_read_table import write_table
from tests.data_prep.tiny_corpus import make_documents, read_tree, write_bytes, write_jsonl, write_txt

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).parent / "mpirun"
COMMAND = ["-m", "disentangled.data_prep.build_corpus"]
NAMED = '[[source]]\nname = "a"\ninput = ["in/a.txt"]\n'
NEEDS_MPIRUN = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")

pytestmark = [pytest.mark.slow, pytest.mark.parametrize("num_ranks", [0, pytest.param(3, marks=NEEDS_MPIRUN)])]


@pytest.fixture
def folder(tmp_path: Path, model_path: Path) -> Path:
    """A working folder with two good files, which are some units each, and a tokenizer."""
    for seed, name in enumerate(["a.txt", "b.txt"]):
        write_txt(tmp_path / "in" / name, make_documents(40, seed))
    shutil.copy(model_path, tmp_path / "spm.model")
    return tmp_path


# the command, in processes that cannot write past 6,000 bytes of a file once MPI is set up
SMALL_FILES = """
import resource, sys
from disentangled.data_prep import build_corpus, task_pool
joined = task_pool.join_mpi()
build_corpus.join_mpi = lambda: joined
resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, 6_000))
sys.exit(build_corpus.main())
"""


def start(folder: Path, num_ranks: int, line: str, script: str = "") -> subprocess.Popen[str]:
    """Start a build with the options in line, without MPI for 0 ranks; by a script instead of the command if given."""
    launcher = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", str(num_ranks)] if num_ranks else []
    command = [*launcher, sys.executable, *(["-c", script] if script else COMMAND), *line.split()]
    pipe = subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=folder, env=environment)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Wait for a build and return (exit code, its lines of error)."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, [line for line in errors.splitlines() if line.startswith("error: ")]


def build(folder: Path, num_ranks: int, line: str = "", inputs: str = "--input in") -> tuple[int, list[str]]:
    common = "--output out --tokenizer spm.model --validation-fraction 0.2 --shard-tokens 600"
    return finish(start(folder, num_ranks, f"{inputs} {common} {line}"))


def count_committed(folder: Path) -> int:
    return len(list((folder / "out" / "unfinished" / "units").glob("*.json")))


@pytest.mark.parametrize(
    ("inputs", "fault"),
    [
        ("--input in absent.txt", "absent.txt: no such file or folder: check --input"),
        ("--input void.txt", "the inputs hold no documents: check --input"),
        ("--input in in/a.txt", "in/a.txt: named twice among the inputs: name it once"),
        ("--sources twice.toml", "twice.toml: source 'a' is listed twice: put its inputs together or rename one"),
        ("--sources both.toml", "in/a.txt: named twice among the inputs: name it once"),
        ("--sources weights.toml", "weights.toml: the weights sum to nothing: give at least one source a weight"),
    ],
)  # fmt: skip
def test_inputs_that_make_no_dataset_leave_nothing(folder: Path, num_ranks: int, inputs: str, fault: str):
    (folder / "void.txt").write_bytes(b"")
    (folder / "twice.toml").write_text(NAMED + NAMED)
    (folder / "both.toml").write_text(NAMED + NAMED.replace('"a"', '"b"'))
    (folder / "weights.toml").write_text(NAMED + "weight = 0\n")
    code, [line] = build(folder, num_ranks, inputs=inputs)
    assert code == 2
    assert fault in line
    assert not (folder / "out").exists()


def test_empty_file_among_others_is_passed_over(folder: Path, num_ranks: int):
    (folder / "in" / "void.txt").write_bytes(b"")
    assert build(folder, num_ranks) == (0, [])
    assert [file.name for file in load_manifest(folder / "out").inputs] == ["a.txt", "b.txt", "void.txt"]


def test_vocabulary_that_is_too_large_names_the_largest(folder: Path, num_ranks: int):
    process = start(folder, num_ranks, "--input in --output out --train-tokenizer --vocab-size 90000")
    code, [line] = finish(process)
    assert code == 2
    assert "--vocab-size 90000 is more than this text allows: use --vocab-size " in line
    assert not (folder / "out").exists()


def test_byte_that_is_not_utf8_is_named_and_the_rest_is_committed(folder: Path, num_ranks: int):
    good = (folder / "in" / "b.txt").read_bytes()
    write_bytes(folder / "in" / "b.txt", good[:3000] + b"\xff" + good[3001:])
    code, [line] = build(folder, num_ranks)
    committed = count_committed(folder)
    assert code == 2
    assert f"in/b.txt: byte 3000 (0xff) is not UTF-8: correct it, or pass --on-bad-text skip; {committed} of" in line
    assert committed > 5


@pytest.mark.parametrize("name", ["c.txt.gz", "c.txt.zst", "c.txt.xz", "c.jsonl.gz", "c.parquet", "c.arrow"])
def test_truncated_archive_is_named_and_the_rest_is_committed(folder: Path, num_ranks: int, name: str):
    path = folder / "in" / name
    write = write_jsonl if ".jsonl" in name else write_txt if ".txt" in name else write_table
    write(path, make_documents(100, 4))
    path.write_bytes(path.read_bytes()[:-20])
    code, [line] = build(folder, num_ranks)
    assert code == 2
    assert f"in/{name}: cannot be read to its end (" in line
    # a table says at its end what it holds: without it no unit can be planned
    assert name == "c.parquet" or count_committed(folder) > 5


def test_file_that_changes_under_the_build_is_named(folder: Path, num_ranks: int):
    line = "--input in --output out --train-tokenizer --vocab-size 300 --shard-tokens 600"
    process = start(folder, num_ranks, line)
    plan = folder / "out" / "unfinished" / "plan.json"
    deadline = time.monotonic() + 60
    while not plan.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    # the plan is written before the first byte is read for good, and every part is looked at again after it was read
    with (folder / "in" / "b.txt").open("ab") as file:
        file.write(b"\n\nmore")
    code, [line] = finish(process)
    assert code == 2
    assert "in/b.txt: changed since the build began (its size or time differs): remove the output" in line


def test_damaged_shard_of_an_unfinished_build_is_made_again(folder: Path, num_ranks: int):
    assert build(folder, 0) == (0, [])
    (folder / "out").rename(folder / "whole")
    good = (folder / "in" / "b.txt").read_bytes()
    status = (folder / "in" / "b.txt").stat()
    write_bytes(folder / "in" / "b.txt", good[:-9] + b"\xff" + good[-8:])
    os.utime(folder / "in" / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert build(folder, num_ranks)[0] == 2
    shard = min((folder / "out" / "train").glob("*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    assert build(folder, num_ranks, "--on-bad-text skip") == (0, [])
    assert shard.read_bytes() == (folder / "whole" / "train" / shard.name).read_bytes()


def test_output_that_cannot_be_written_is_named(folder: Path, num_ranks: int):
    # /proc takes no folders, from root either
    code, [line] = finish(start(folder, num_ranks, "--input in --output /proc/out --tokenizer spm.model"))
    assert code == 2
    assert line.startswith("error: /proc/out: ")


def test_disk_that_takes_no_more_stops_the_build_and_it_goes_on_later(folder: Path, num_ranks: int):
    options = "--input in --output {} --tokenizer spm.model --validation-fraction 0.2 --shard-tokens 3000"

    # stands in for a full disk, which tests cannot have
    code, [line] = finish(start(folder, num_ranks, options.format("out"), SMALL_FILES))
    assert code == 2
    assert line.startswith("error: out/") and ": file too large" in line
    assert finish(start(folder, num_ranks, options.format("out"))) == (0, [])
    assert finish(start(folder, 0, options.format("whole"))) == (0, [])
    assert read_tree(folder / "out") == read_tree(folder / "whole")


def test_of_two_builds_in_one_folder_one_is_refused(folder: Path, num_ranks: int):
    # a tokenizer is trained so that both are at work at the same time
    line = "--input in --output out --train-tokenizer --vocab-size 400 --shard-tokens 600"
    processes = [start(folder, num_ranks, line) for _ in range(2)]
    outcomes = sorted(finish(process) for process in processes)
    assert [code for code, _ in outcomes] == [0, 2]
    [refusal] = outcomes[1][1]
    assert "out: another build " in refusal or "out: holds a finished dataset" in refusal
    load_manifest(folder / "out")


def test_ranges_that_start_inside_characters_lose_nothing(folder: Path, num_ranks: int):
    documents = ["\u6771\u4eac" * (index % 37 + 1) + f" {index}" for index in range(300)]
    write_txt(folder / "in" / "a.txt", documents)
    # 301 is no multiple of 3: ranges of 602 bytes start at every place of a character
    process = start(folder, num_ranks, "--input in/a.txt --output out --tokenizer spm.model --shard-tokens 301")
    assert finish(process) == (0, [])
    manifest = load_manifest(folder / "out")
    assert manifest.totals.num_documents == len(documents)
    assert manifest.totals.text_bytes == sum(len(text.encode()) for text in documents)
    assert len({record.task for split in SPLITS for record in manifest.splits[split]}) > 30
