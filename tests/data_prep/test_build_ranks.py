"""build_corpus on several MPI ranks: the same bytes as one process, also after being killed, and one rank's failure."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from disentangled.data_prep.cut_document import cut_document
from disentangled.data_prep.shard_schema import load_manifest, open_shard
from tests.data_prep.test_read_table import write_table
from tests.data_prep.tiny_corpus import make_documents, read_tree, write_bytes, write_jsonl, write_txt

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).parent / "mpirun"
OPTIONS = [
    "--train-tokenizer", "--vocab-size", "400", "--validation-fraction", "0.1", "--validation-floor", "5",
    "--shard-tokens", "1500", "--drop-duplicates", "--min-characters", "12", "--normalize", "NFC", "--strip-controls",
    "--tokenizer-sample-bytes", "30000", "--drop-near-duplicates", "0.9", "--split-documents", "2000",
    "--max-run", "20", "--min-letters", "0.3",
]  # fmt: skip

# not copies but nearly so, and a document that is cut into several
CHANGED = [f"{text} and more" for text in make_documents(300, seed=1) if len(text) > 600]
BOOK = "\n".join(make_documents(20, seed=8))

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python")


def start(num_ranks: int, folder: Path, output: str, options: list[str] = OPTIONS) -> subprocess.Popen[str]:
    """Start a build of folder/sources.toml, without MPI for 0 ranks, in a process group of its own."""
    launcher = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "-n", str(num_ranks)] if num_ranks else []
    build = [sys.executable, "-m", "disentangled.data_prep.build_corpus", "--sources", str(folder / "sources.toml")]
    command = [*launcher, *build, "--output", str(folder / output), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three sources in every kind of container, with copies across them, and `serial`, built of it."""
    folder = tmp_path_factory.mktemp("ranks")
    shared = make_documents(30, seed=9)
    write_txt(folder / "en" / "giant.txt", make_documents(300, seed=1) + shared)
    write_jsonl(folder / "en" / "rows.jsonl", make_documents(60, seed=2))
    write_txt(folder / "de" / "a.txt.zst", make_documents(100, seed=3) + shared[:10])
    write_txt(folder / "de" / "b.txt.xz", make_documents(20, seed=4))
    write_jsonl(folder / "de" / "c.jsonl.gz", make_documents(20, seed=5))
    write_table(folder / "sw" / "a.parquet", make_documents(40, seed=6), rows=10)
    write_table(folder / "sw" / "stream.arrow", [*make_documents(20, seed=7), *shared, "short", "e\u0301\x00" * 9])
    write_jsonl(folder / "sw" / "book.jsonl", [BOOK, *CHANGED])
    (folder / "sources.toml").write_text(
        "".join(f'[[source]]\nname="{name}"\nweight={weight}\ninput=["{name}/*"]\n'
                for name, weight in (("en", 1), ("de", 2.5), ("sw", 1)))
    )  # fmt: skip
    assert finish(start(0, folder, "serial")) == (0, "")
    return folder


def test_serial_build_holds_what_the_options_ask_for(corpus: Path):
    manifest = load_manifest(corpus / "serial")
    for split in ("train", "validation"):
        for record in manifest.splits[split]:
            open_shard(corpus / "serial", record, "full")
    floors = {name: 0 for name in ("en", "de", "sw")}
    for record in manifest.splits["validation"]:
        floors[record.source] += record.num_documents
    assert min(floors.values()) >= 5
    assert (manifest.sources, manifest.source_weights) == (("en", "de", "sw"), (1.0, 2.5, 1.0))
    parts = [(300, 1), (30, 9), (60, 2), (100, 3), (20, 4), (20, 5), (40, 6), (20, 7)]
    texts = [text for number, seed in parts for text in make_documents(number, seed)]
    texts += cut_document(BOOK, 2000)
    assert manifest.totals.num_documents == len({text for text in texts if len(text) >= 12}) + 1
    report = (corpus / "serial" / "report.md").read_text()
    shared = [text for text in make_documents(30, 9) if len(text) >= 12]
    num_in_de = sum(text in shared for text in make_documents(30, 9)[:10])
    duplicates = (f"de | {num_in_de} | left out: duplicate", f"sw | {len(shared)} | left out: duplicate")
    assert len(CHANGED) > 5
    near = f"sw | {len(CHANGED)} | left out: near-duplicate"
    for line in (*duplicates, near, "sw | 1 | normalized to NFC", "sw | 1 | cut into several"):
        assert f"| {line} |" in report
    rows = [json.loads(line) for line in (corpus / "serial" / "rejects.jsonl").read_text().splitlines()]
    assert sum(row["reason"] == "duplicate" for row in rows) == num_in_de + len(shared)
    for row, text in zip((row for row in rows if row["reason"] == "near-duplicate"), CHANGED, strict=True):
        original = (corpus / row["repeats"]["file"]).read_bytes()[row["repeats"]["doc"] :]
        assert original.decode().startswith(text.removesuffix(" and more"))
    assert {"source": "sw", "file": "sw/stream.arrow", "doc": 50, "reason": "too short", "detail": "short"} in rows


@pytest.mark.parametrize("num_ranks", [pytest.param(1, marks=pytest.mark.slow), 2, 3])
def test_any_number_of_ranks_gives_the_bytes_of_one_process(corpus: Path, num_ranks: int):
    assert finish(start(num_ranks, corpus, f"ranks{num_ranks}"))[0] == 0
    assert read_tree(corpus / f"ranks{num_ranks}") == read_tree(corpus / "serial")


def test_build_killed_and_restarted_on_other_ranks_gives_the_same_bytes(corpus: Path):
    kill_and_restart(corpus, "killed", seed=0, num_kills=2)


@pytest.mark.slow
def test_build_killed_twenty_times_gives_the_same_bytes(corpus: Path):
    for seed in range(1, 5):
        kill_and_restart(corpus, f"killed{seed}", seed, num_kills=5)


def kill_and_restart(corpus: Path, output: str, seed: int, num_kills: int) -> None:
    """Kill the whole build some units after it starts, a few times, then let it finish on two ranks."""
    draw = random.Random(seed)
    units = corpus / output / "unfinished" / "units"
    for kill in range(num_kills):
        done = len(list(units.glob("*.json")))
        process = start([3, 0, 2][kill % 3], corpus, output)
        deadline = time.monotonic() + 60
        # once while it scans or trains, else after a few more units
        wanted = done + draw.randint(0, 4)
        while len(list(units.glob("*.json"))) < wanted or not units.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        kill_group(process)
        if not units.exists():  # the kill came after the end
            assert kill > 0, "not a single kill was in time"
            break
    else:
        assert finish(start(2, corpus, output))[0] == 0
    assert read_tree(corpus / output) == read_tree(corpus / "serial")


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a launcher and all ranks, which it puts into groups of their own."""
    listed = subprocess.run(["ps", "-eo", "pid,sess"], capture_output=True, text=True, check=True).stdout
    session = [int(line.split()[0]) for line in listed.splitlines()[1:] if int(line.split()[1]) == process.pid]
    for pid in [process.pid, *session]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.communicate()


def test_failure_of_one_rank_names_file_and_byte_and_the_rest_is_committed(corpus: Path, tmp_path: Path):
    for seed, name in enumerate("abc"):
        write_txt(tmp_path / "in" / f"{name}.txt", make_documents(60, seed))
    bad = (tmp_path / "in" / "b.txt").read_bytes()
    write_bytes(tmp_path / "in" / "b.txt", bad[:5000] + b"\xff" + bad[5001:])
    (tmp_path / "sources.toml").write_text('[[source]]\nname = "text"\ninput = ["in"]\n')
    options = ["--tokenizer", str(corpus / "serial" / "spm.model"), "--shard-tokens", "1500"]
    code, errors = finish(start(3, tmp_path, "out", options))
    assert code == 2
    [line] = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path}/in/b.txt: byte 5000 (0xff) is not UTF-8: correct it, or pass" in line
    committed = len(list((tmp_path / "out" / "unfinished" / "units").glob("*.json")))
    assert f"; {committed} of {committed + 1} units are committed" in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_mistake_in_the_options_is_told_once(corpus: Path):
    code, errors = finish(start(3, corpus, "never", ["--tokenizer", "absent.model"]))
    assert code == 2
    assert errors.count("error: absent.model: no such tokenizer file: check --tokenizer\n") == 1


@pytest.mark.slow
def test_rank_that_is_killed_ends_the_job_and_the_rest_stays(corpus: Path):
    process = start(3, corpus, "lost")
    units = corpus / "lost" / "unfinished" / "units"
    while not list(units.glob("*.json")):
        assert process.poll() is None
        time.sleep(0.002)
    listed = subprocess.run(["ps", "-eo", "pid,ppid,cmd"], capture_output=True, text=True, check=True).stdout
    ranks = [int(line.split()[0]) for line in listed.splitlines()[1:] if int(line.split()[1]) == process.pid]
    os.kill(max(ranks), signal.SIGKILL)
    assert finish(process)[0] != 0
    assert list(units.glob("*.json"))
    assert finish(start(2, corpus, "lost"))[0] == 0
    assert read_tree(corpus / "lost") == read_tree(corpus / "serial")
