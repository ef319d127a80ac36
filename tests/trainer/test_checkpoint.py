import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from disentangled.trainer.checkpoint import (
    TrainerState,
    find_checkpoint,
    list_checkpoints,
    load_engines,
    load_state,
    save_checkpoint,
)

WEIGHTS = bytes(range(256)) * 40


class OneRank:
    """The only rank of a run, behind what checkpoint.py uses of trainer/distributed.Ranks."""

    is_first = True

    def wait_for_all(self) -> None:
        return


class FakeEngine:
    """DeepSpeed's part of a checkpoint: one file of weights; `num_bytes_free` is what the disk still takes."""

    def __init__(self, num_bytes_free: int = 1 << 30) -> None:
        self.deepspeed = self
        self.num_bytes_free = num_bytes_free
        self.loaded: list[tuple[str, str]] = []

    def save_checkpoint(self, directory: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        folder = Path(directory) / tag
        folder.mkdir()
        (folder / "weights.pt").write_bytes(WEIGHTS[: self.num_bytes_free])
        if self.num_bytes_free < len(WEIGHTS):
            raise OSError(errno.ENOSPC, "No space left on device")

    def load_checkpoint(self, directory: str, tag: str) -> tuple[str | None, dict[str, Any]]:
        self.loaded.append((directory, tag))
        return (directory, {}) if (Path(directory) / tag / "weights.pt").exists() else (None, {})


class FakePair:
    def __init__(self, **bytes_free: int) -> None:
        self.generator = FakeEngine()
        self.discriminator = FakeEngine(**bytes_free)


def save(run_dir: Path, step: int, keep: int = 2, **bytes_free: int) -> Path:
    state = TrainerState(step, step * 8, "dataset", 2, [1.5, float(step)], {"run": {"seed": 1}})
    return save_checkpoint(run_dir, FakePair(**bytes_free), state, OneRank(), keep)  # type: ignore[arg-type]


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "torn weights": ("generator/weights.pt", cut_short, "generator/weights.pt has 100 bytes instead of 10240"),
    "flipped byte": ("discriminator/weights.pt", flip_byte, "discriminator/weights.pt has another xxh3_128"),
    "missing weights": ("discriminator/weights.pt", Path.unlink, "discriminator/weights.pt is missing"),
    "missing state": ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
    "missing manifest": ("manifest.json", Path.unlink, "manifest.json"),
    "torn manifest": ("manifest.json", cut_short, "manifest.json"),
}


def test_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    assert path == tmp_path / "checkpoints" / "step_00000010"
    assert find_checkpoint(tmp_path) == (path, [])
    state = load_state(path)
    assert (state.step, state.consumed_samples, state.world_size, state.sums) == (10, 80, 2, [1.5, 10.0])
    pair = FakePair()
    load_engines(path, pair)  # type: ignore[arg-type]
    assert pair.generator.loaded == [(str(path), "generator")]
    assert pair.discriminator.loaded == [(str(path), "discriminator")]
    assert (tmp_path / "checkpoints" / "latest").read_text() == path.name


def test_manifest_names_every_file_but_itself(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    listed = set(json.loads((path / "manifest.json").read_text()))
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert listed == present - {"manifest.json"}
    assert "trainer_state.json" in listed


def test_find_checkpoint_of_a_new_run_is_none(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path / "nowhere") == (None, [])


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, damage: str) -> None:
    older, newer = save(tmp_path, 5), save(tmp_path, 10)
    name, harm, words = DAMAGES[damage]
    harm(newer / name)
    found, faults = find_checkpoint(tmp_path)
    assert found == older
    assert len(faults) == 1 and str(newer) in faults[0] and words in faults[0] and "\n" not in faults[0]


def test_no_whole_checkpoint_leaves_only_faults(tmp_path: Path) -> None:
    for step in (5, 10):
        cut_short(save(tmp_path, step) / "generator" / "weights.pt")
    found, faults = find_checkpoint(tmp_path)
    assert found is None and len(faults) == 2


def test_partial_checkpoint_is_never_considered(tmp_path: Path) -> None:
    older = save(tmp_path, 5)
    save(tmp_path, 10).rename(tmp_path / "checkpoints" / "step_00000010.partial")
    assert find_checkpoint(tmp_path) == (older, [])
    save(tmp_path, 15)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_save_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep)
    assert names(tmp_path) == ["step_00000020", "step_00000015", "step_00000010"][:keep]


def test_save_after_a_fall_back_removes_the_damaged_future(tmp_path: Path) -> None:
    # resumed at 5 because 10 was damaged, stopped at 7: with keep 1 the damaged one must not push the good one out
    save(tmp_path, 5)
    cut_short(save(tmp_path, 10) / "generator" / "weights.pt")
    newest = save(tmp_path, 7, keep=1)
    assert names(tmp_path) == ["step_00000007"]
    assert find_checkpoint(tmp_path) == (newest, [])


def test_save_replaces_a_damaged_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    cut_short(save(tmp_path, 10) / "generator" / "weights.pt")
    assert find_checkpoint(tmp_path)[0] is None
    path = save(tmp_path, 10)
    assert find_checkpoint(tmp_path) == (path, [])


def test_full_disk_while_saving_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    older = save(tmp_path, 5)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10, keep=1, num_bytes_free=5000)
    assert find_checkpoint(tmp_path) == (older, [])
    assert (tmp_path / "checkpoints" / "latest").read_text() == older.name
    newer = save(tmp_path, 10)  # there is room again
    assert find_checkpoint(tmp_path) == (newer, [])


@pytest.mark.parametrize("place", ["rename", "fsync"])
def test_death_before_the_end_of_saving_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    older = save(tmp_path, 5)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename" if place == "rename" else "os.fsync", die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10, keep=1)
    assert find_checkpoint(tmp_path) == (older, [])


def test_engine_that_loads_nothing_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    (path / "discriminator" / "weights.pt").unlink()
    with pytest.raises(RuntimeError, match=r"could not load .*discriminator"):
        load_engines(path, FakePair())  # type: ignore[arg-type]
