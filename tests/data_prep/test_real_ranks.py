"""Real text, where the checkout has it: the same bytes on 1, 2 and 3 ranks, seven languages, and a soak."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from disentangled.data_prep.find_inputs import find_text_files
from disentangled.data_prep.read_text import read_documents
from disentangled.data_prep.shard_schema import SPLITS, load_manifest, open_shard
from tests.data_prep.test_build_ranks import MPIRUN, finish, start
from tests.data_prep.tiny_corpus import read_tree, write_txt

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ENGLISH = DATA / "en_wikipedia" / "good.txt.zst"
LANGUAGES = {
    name: next((DATA / "multi_text").glob(f"{name}.*"), Path()) for name in ("de", "zh", "vi", "sw", "fr", "es", "ru")
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not MPIRUN.exists(), reason="no mpirun beside this Python"),
    pytest.mark.skipif(not ENGLISH.is_file() or Path() in LANGUAGES.values(), reason=f"{DATA} is not here"),
]


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 500 English articles as plain text, in a TOML file of sources, and `serial`, built of them."""
    folder = tmp_path_factory.mktemp("english")
    [file] = find_text_files([ENGLISH])
    write_txt(folder / "a.txt", [document.text for document, _ in zip(read_documents(file), range(500), strict=False)])
    (folder / "sources.toml").write_text('[[source]]\nname = "en"\ninput = ["a.txt"]\n')
    assert finish(start(0, folder, "serial", OPTIONS)) == (0, "")
    return folder


OPTIONS = [
    "--train-tokenizer", "--vocab-size", "8000", "--tokenizer-sample-bytes", "2000000", "--shard-tokens", "32768",
    "--validation-floor", "20", "--drop-duplicates", "--drop-near-duplicates", "--normalize", "NFC",
]  # fmt: skip


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_english_gives_the_same_bytes_on_any_number_of_ranks(english: Path, num_ranks: int):
    assert finish(start(num_ranks, english, f"ranks{num_ranks}", OPTIONS))[0] == 0
    assert read_tree(english / f"ranks{num_ranks}") == read_tree(english / "serial")


def test_ranks_killed_at_random_twenty_times_end_with_the_same_bytes(english: Path):
    draw = random.Random(0)
    units = english / "soak" / "unfinished" / "units"
    for kill in range(20):
        process = start(3, english, "soak", OPTIONS)
        # a few early, while it starts, scans or trains; the others when units are committed
        wanted = len(list(units.glob("*.json"))) + (1 if kill >= 5 else 0)
        limit = time.monotonic() + (draw.uniform(1, 6) if kill < 5 else 120)
        while time.monotonic() < limit and (kill < 5 or len(list(units.glob("*.json"))) < wanted):
            assert process.poll() is None, process.communicate()
            time.sleep(0.005)
        kill_one_rank(process, draw)
    assert len(list(units.glob("*.json"))) >= 15
    assert finish(start(2, english, "soak", OPTIONS))[0] == 0
    assert read_tree(english / "soak") == read_tree(english / "serial")


def kill_one_rank(process: subprocess.Popen[str], draw: random.Random) -> None:
    """Kill one of a launcher's ranks, and wait until the others are gone too."""
    ranks = psutil.Process(process.pid).children()
    assert ranks, "it has not started its ranks yet"
    os.kill(draw.choice(ranks).pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert not alive


def test_seven_languages_have_shards_floors_and_a_share_of_the_vocabulary(tmp_path: Path):
    (tmp_path / "sources.toml").write_text(
        "".join(f'[[source]]\nname = "{name}"\ninput = ["{path}"]\n' for name, path in LANGUAGES.items())
    )
    options = ["--train-tokenizer", "--vocab-size", "16000", "--tokenizer-alpha", "0.3", "--validation-floor", "20"]
    code, errors = finish(start(3, tmp_path, "late", [*options, "--tokenizer-sample-bytes", "1000000"]))
    assert code == 2
    assert "source 'sw' has 1 different document in all: lower it, add text or cut long documents with" in errors
    options += ["--tokenizer-sample-bytes", "7000000", "--split-documents", "5000"]
    for num_ranks in (2, 3):
        assert finish(start(num_ranks, tmp_path, f"ranks{num_ranks}", options))[0] == 0
    assert read_tree(tmp_path / "ranks2") == read_tree(tmp_path / "ranks3")
    manifest = load_manifest(tmp_path / "ranks2")
    assert manifest.totals.unknown_rate == 0.0
    for name in LANGUAGES:
        records = [record for split in SPLITS for record in manifest.splits[split] if record.source == name]
        assert sum(record.num_documents for record in records if record.split == "validation") >= 20
        num_tokens = sum(record.num_tokens for record in records)
        # a language that the vocabulary has nothing for is spelled in bytes
        assert sum(record.num_byte_tokens for record in records) < 0.05 * num_tokens, name
        for record in records:
            open_shard(tmp_path / "ranks2", record, "full")
