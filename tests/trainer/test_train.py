"""What is refused before the ranks meet, so in this very process. The same through the real command, and what is found
later: tests/integration/test_bad_input.py.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch.distributed

from disentangled.trainer import train
from disentangled.trainer.train import main, parse_arguments
from tests.trainer.tiny_run import SMALLEST


def refuse(capsys: pytest.CaptureFixture[str], shards: Path, folder: Path, *overrides: str) -> str:
    """The one line that a refused command prints; the run folder must not come into being."""
    keys = [*SMALLEST, f"data.shards={shards}", f"run.dir={folder}", *overrides]
    assert main(["--recipe", "tiny", "--engine", "fp32_cpu", *keys]) == 2
    assert not folder.exists() and not torch.distributed.is_initialized()
    stdout, stderr = capsys.readouterr()
    assert stdout == "" and stderr.startswith("error: ") and stderr.count("\n") == 1
    return stderr


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("batch.micro_sequences=3", ("batch.global_sequences 8", "global_sequences=9 or batch.micro_sequences=2")),
        ("model.num_attention_heads=5", ("model.num_attention_heads is 5", "does not divide", "choose one of 1, 2, 4")),
        ("model.vocab_size=100", ("model.vocab_size is 100", "leave the key out or raise it")),
        ("model.embedding_sharing=gdse", ("model.embedding_sharing is 'gdse'", "gdes, nes, es")),
        ("optimizer.lr=1", ("unknown key 'optimizer.lr'", "did you mean")),
        ("zero_optimization.stage=2", ("the ds_config owns", "--engine")),
        ("data.shards=", ("data.shards is not set", "add data.shards=DIR")),
        ("seed", ("'seed' has no '='", "write section.key=value")),
        ("--colour", ("unrecognized arguments: --colour", "--help")),
    ],
)
def test_bad_argument_is_refused_in_one_line(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: tuple[str, ...]
) -> None:
    line = refuse(capsys, shards, tmp_path / "run", override)
    assert all(word in line for word in words), line


def append_to_tokenizer(shards: Path) -> None:
    path = shards / "spm.model"
    path.write_bytes(path.read_bytes() + b"\0")


def remove_a_shard(shards: Path) -> None:
    sorted((shards / "train").glob("*.arrow"))[1].unlink()


def flip_a_byte(shards: Path) -> None:
    path = sorted((shards / "validation").glob("*.arrow"))[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def raise_schema_version(shards: Path) -> None:
    path = shards / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99}))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (shutil.rmtree, ("manifest.json", "run build_corpus")),
        (append_to_tokenizer, ("spm.model", "not the tokenizer of this dataset", "restore")),
        (remove_a_shard, ("shard-text-000001.arrow", "missing shard", "restore")),
        (flip_a_byte, ("shard-text-000000.arrow", "xxh3_128", "restore")),
        (raise_schema_version, ("manifest.json", "schema version 99", "build the dataset again")),
    ],
)
def test_bad_shards_are_refused_in_one_line(
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path], object],
    words: tuple[str, ...],
) -> None:
    bad = Path(shutil.copytree(shards, tmp_path / "shards"))
    harm(bad)
    line = refuse(capsys, bad, tmp_path / "run")
    assert all(word in line for word in words), line


def test_rank_that_is_not_its_hosts_first_lets_that_one_speak(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(train.time, "sleep", slept.append)
    refuse(capsys, shards, tmp_path / "run", "seed")
    assert slept == []
    monkeypatch.setenv("LOCAL_RANK", "1")
    refuse(capsys, shards, tmp_path / "run", "seed")  # it speaks up where the launcher has not ended it by then
    assert slept == [train.SPEAK_UP_SECONDS]


def test_overrides_may_stand_between_options() -> None:
    options = parse_arguments(["--recipe", "tiny", "run.dir=x", "--engine", "fp32_cpu", "run.seed=2"])
    assert options.overrides == ["run.dir=x", "run.seed=2"]


def test_cache_that_an_order_over_all_shards_would_thrash_is_refused(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refuse(capsys, shards, tmp_path / "run", "data.cache_bytes=1000")
    assert all(word in line for word in ("data.cache_bytes is 1,000", "data.shuffle_block_shards")), line
