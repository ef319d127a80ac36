"""The build_corpus command: what a user's mistake gets, and that a failure leaves nothing behind."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from disentangled.data_prep import build_corpus
from disentangled.data_prep.shard_schema import load_manifest
from tests.data_prep.tiny_corpus import NUM_PIECES, make_documents, read_tree, write_bytes, write_txt

ROOT = Path(__file__).parents[2]
Build = subprocess.Popen[str]
StartBuild = Callable[[Path, Path, list[str]], Build]
COMMAND = [sys.executable, "-m", "disentangled.data_prep.build_corpus"]


@pytest.fixture
def folder(tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with inputs right and wrong and the tokenizer in it."""
    write_txt(tmp_path / "good.txt", make_documents())
    write_bytes(tmp_path / "latin1.txt", b"one\n\ncaf\xe9\n\n" + "\n\n".join(make_documents()).encode())
    write_bytes(tmp_path / "void.txt", b"")
    write_bytes(tmp_path / "blank.txt", b"\n \n\n")
    write_txt(tmp_path / "one.txt", ["only one document"])
    write_bytes(tmp_path / "rows.jsonl", b'{"body": "x"}\n')
    write_bytes(tmp_path / "data.csv", b"x")
    write_bytes(tmp_path / "taken" / "manifest.json", b"{}")
    (tmp_path / "spm.model").write_bytes(model_path.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start_build() -> Iterator[StartBuild]:
    """Gives a function that starts a build in a process, which does not outlive the test."""
    processes: list[Build] = []

    def listen_to_interrupts() -> None:
        # a shell that runs the tests in the background has its children ignore SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def start(text: Path, output: Path, options: list[str]) -> Build:
        command = [*COMMAND, "--input", str(text), "--output", str(output), *options]
        pipe = subprocess.PIPE
        processes.append(
            subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT, preexec_fn=listen_to_interrupts)
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def run(line: str) -> int:
    try:
        return build_corpus.main(line.split())
    except SystemExit as stop:
        assert isinstance(stop.code, int)
        return stop.code


def test_command_builds_a_dataset_and_says_what_it_holds(folder: Path, capsys: pytest.CaptureFixture[str]):
    assert (
        run(f"--input good.txt --output out --train-tokenizer --vocab-size {NUM_PIECES} --validation-fraction .2") == 0
    )
    printed = capsys.readouterr()
    manifest = load_manifest(folder / "out")
    assert manifest.num_pieces == NUM_PIECES
    assert printed.err == ""
    assert printed.out.startswith(f"wrote out\ndataset    {manifest.dataset_id[:12]}, schema version 2, seed 1\n")
    assert f"{manifest.counts['train'].num_tokens:,}" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80


def test_command_skips_bad_text_when_told_and_reports_it(folder: Path, capsys: pytest.CaptureFixture[str]):
    line = "--input latin1.txt --output out --tokenizer spm.model --validation-fraction 0.2 --on-bad-text skip"
    assert run(line) == 0
    assert "skipped    bad documents: 1, see rejects.jsonl" in capsys.readouterr().out
    assert load_manifest(folder / "out").num_bad_documents == 1


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("--input absent.txt --tokenizer spm.model", "absent.txt: no such file or folder"),
        ("--input data.csv --tokenizer spm.model", "data.csv: unknown kind of file"),
        ("--input void.txt --tokenizer spm.model", "the inputs hold no documents"),
        ("--input void.txt --train-tokenizer --vocab-size 400", "the inputs hold no text to train"),
        ("--input blank.txt --tokenizer spm.model", "the inputs hold no documents"),
        ("--input one.txt --tokenizer spm.model", "the inputs hold one document"),
        ("--input latin1.txt --tokenizer spm.model", "byte 8 (0xe9) is not UTF-8"),
        ("--input latin1.txt --train-tokenizer --vocab-size 400", "byte 8 (0xe9) is not UTF-8"),
        ("--input latin1.txt --train-tokenizer --vocab-size 90000", "byte 8 (0xe9) is not UTF-8"),
        ("--input rows.jsonl --tokenizer spm.model", "has no field 'text', its fields are 'body'"),
        (
            "--input rows.jsonl --tokenizer spm.model --on-bad-text skip",
            "no documents (1 left out, first: rows.jsonl, bad text: ",
        ),
        ("--input good.txt --tokenizer absent.model", "absent.model: no such tokenizer file"),
        ("--input good.txt --tokenizer good.txt", "good.txt: not a SentencePiece model"),
        ("--input good.txt --train-tokenizer --vocab-size 90000", ", the largest that works, or more text"),
        ("--input good.txt --train-tokenizer --vocab-size 0", "--vocab-size 0: must be at least 1"),
        ("--input good.txt --train-tokenizer", "--train-tokenizer and --vocab-size go together"),
        ("--input good.txt --tokenizer spm.model --vocab-size 9", "--train-tokenizer and --vocab-size go together"),
        ("--input good.txt", "one of the arguments --tokenizer --train-tokenizer is required"),
        ("--tokenizer spm.model", "one of the arguments --input --sources is required"),
        ("--input good.txt --tokenizer spm.model --validation-fraction 0", "must lie between 0 and 1"),
        ("--input good.txt --tokenizer spm.model --validation-fraction 1", "must lie between 0 and 1"),
        ("--input good.txt --tokenizer spm.model --validation-fraction nan", "must lie between 0 and 1"),
        (
            "--input good.txt --tokenizer spm.model --validation-fraction 1e-9",
            "leaves no validation documents of the 60",
        ),
        ("--input good.txt --tokenizer spm.model --validation-fraction .9999", "leaves no train documents of the 60"),
        ("--input good.txt --tokenizer spm.model --token-storage uint8", "argument --token-storage: invalid choice"),
        ("--input good.txt --tokenizer spm.model --seed -1", "--seed -1: must lie between 0 and"),
        ("--input good.txt --tokenizer spm.model --shard-tokens 0", "--shard-tokens 0: must lie between 1 and"),
        ("--input good.txt --tokenizer spm.model --tokenizer-sample-bytes 0", "must be at least 1"),
        (
            "--input good.txt --sources s.toml --tokenizer spm.model",
            "argument --sources: not allowed with argument --in",
        ),
        ("--sources absent.toml --tokenizer spm.model", "absent.toml: no such file: check --sources"),
        ("--input good.txt good.txt --tokenizer spm.model", "good.txt: named twice among the inputs"),
        ("--input good.txt --tokenizer spm.model --validation-floor -1", "--validation-floor -1: must not be negative"),
        ("--input good.txt --tokenizer spm.model --validation-floor 60", "source 'text' has 60 different documents"),
        ("--input good.txt --tokenizer spm.model --drop-near-duplicates 2", "must lie between 0 and 1: try 0.8"),
        ("--input good.txt --tokenizer spm.model --min-letters 2", "--min-letters 2.0: is a share and must lie"),
        ("--input good.txt --tokenizer spm.model --split-documents -1", "--split-documents -1: must not be negative"),
        ("--input good.txt --tokenizer spm.model --tokenizer-alpha 2", "--tokenizer-alpha 2.0: must lie between 0"),
        (
            "--input good.txt --tokenizer spm.model --character-coverage .5",
            "--character-coverage 0.5: must lie between",
        ),
        ("--input good.txt --tokenizer spm.model --normalize nfc", "argument --normalize: invalid choice: 'nfc'"),
        ("--input good.txt --tokenizer spm.model --min-characters 9999", "(60 left out, first: good.txt, too short: "),
        ("--input good.txt --tokenizer spm.model --min-characters 9 --max-characters 8", "is below --min-characters 9"),
        ("--input good.txt --tokenizer spm.model --on-bad-text ignore", "argument --on-bad-text: invalid choice"),
    ],
)
def test_mistake_gives_one_line_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], options: str, fault: str
):
    before = read_tree(folder)
    assert run(f"{options} --output deep/out") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert fault in printed.err
    assert read_tree(folder) == before
    assert not (folder / "deep").exists()


def test_finished_dataset_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]):
    before = read_tree(folder)
    assert run("--input good.txt --output taken --tokenizer spm.model") == 2
    assert capsys.readouterr().err == (
        "error: taken: holds a finished dataset: name another --output or remove it first\n"
    )
    assert read_tree(folder) == before


def test_disk_that_refuses_gives_one_line_and_leaves_nothing(folder: Path):
    # a limit on the size of files stands in for a full disk: the write of the first shard fails half-way
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, 16_384))

    text = write_txt(folder / "long.txt", make_documents(400))
    command = [
        *COMMAND,
        "--input",
        str(text),
        "--output",
        str(folder / "out"),
        "--tokenizer",
        str(folder / "spm.model"),
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, preexec_fn=limit_files, env=environment, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {folder / 'out'}/")
    assert process.stderr.endswith(": file too large\n")
    assert process.stderr.count("\n") == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_build_stopped_while_it_encodes_keeps_what_is_committed_and_goes_on(
    folder: Path, start_build: StartBuild, number: signal.Signals, code: int, word: str
):
    text = write_txt(folder / "long.txt", make_documents(1000) * 3)
    options = ["--tokenizer", str(folder / "spm.model"), "--shard-tokens", "10000"]
    process = start_build(text, folder / "out", options)
    wait_until((folder / "out" / "unfinished" / "units" / "000003.json").exists, process)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    consequence = "what is committed stays, the same command goes on from there"
    assert (process.returncode, output, errors) == (code, "", f"error: {word}: {consequence}\n")
    committed = read_tree(folder / "out" / "train")
    process = start_build(text, folder / "out", options)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 0
    finished = read_tree(folder / "out" / "train")
    assert {name: finished[name] for name in committed if not name.endswith(".tmp")}.items() <= committed.items()
    assert not (folder / "out" / "unfinished").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_build_stopped_while_the_tokenizer_trains_stops_at_once(
    folder: Path, start_build: StartBuild, number: signal.Signals
):
    process, trainer = start_long_training(folder, start_build)
    sent = time.monotonic()
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count("\n")) == (128 + number, "", 1)
    assert time.monotonic() - sent < 10
    assert not (folder / "out").exists()
    assert not trainer.exists()


def test_training_killed_for_its_memory_gives_one_line_and_leaves_nothing(folder: Path, start_build: StartBuild):
    process, trainer = start_long_training(folder, start_build)
    os.kill(int(trainer.name), signal.SIGKILL)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors.count("\n")) == (2, "", 1)
    assert "ended with exit code -9" in errors
    assert "lower --tokenizer-sample-bytes" in errors
    assert not (folder / "out").exists()


def start_long_training(folder: Path, start_build: StartBuild) -> tuple[Build, Path]:
    """Start a build that trains for more than ten seconds; return it and the /proc entry of the child that trains."""
    # words without any repetition, which take SentencePiece long
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=12)) for _ in range(100_000)]
    text = write_txt(folder / "long.txt", [" ".join(words[at : at + 100]) for at in range(0, len(words), 100)])
    process = start_build(text, folder / "out", ["--train-tokenizer", "--vocab-size", "1000"])
    wait_until(lambda: bool(find_trainers(process)), process)
    [trainer] = find_trainers(process)
    # a second of computing is well past the imports: SentencePiece is at work
    wait_until(lambda: read_cpu_seconds(trainer) > 1, process)
    return process, trainer


def find_trainers(process: Build) -> list[Path]:
    """Return the /proc entries of the processes that train for a build (and not of multiprocessing's tracker)."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Path(f"/proc/{child}") for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def read_cpu_seconds(entry: Path) -> float:
    """Return the user time of a process: the twelfth field after its name."""
    return int((entry / "stat").read_text().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


def wait_until(happened: Callable[[], bool], process: Build) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, "the build ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.005)
