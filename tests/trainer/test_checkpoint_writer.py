import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.trainer import checkpoint_writer
from disentangled.trainer.checkpoint import MODELS, find_checkpoint, load_state
from disentangled.trainer.engine_state import put_state
from disentangled.trainer.model_files import ModelFiles
from tests.trainer.plain_checkpoints import PlainPair, make_writer, save, trainer_state


def states(pair: PlainPair) -> dict[str, dict[str, torch.Tensor]]:
    return {name: getattr(pair, name).deepspeed.state() for name in MODELS}


def restore(path: Path, pair: PlainPair) -> None:
    for name in MODELS:
        put_state(getattr(pair, name).deepspeed, load_state(path).models[name], ModelFiles(path / name))


def assert_same(one: dict[str, dict[str, torch.Tensor]], other: dict[str, dict[str, torch.Tensor]]) -> None:
    for name in MODELS:
        assert one[name].keys() == other[name].keys()
        assert [key for key, value in one[name].items() if not torch.equal(value, other[name][key])] == []


def test_weights_moments_and_counters_come_back(tmp_path: Path) -> None:
    pair = PlainPair(5)
    expected = states(pair)
    assert len(expected["generator"]) == 6 * 4
    path = save(tmp_path, 5)
    for other in (PlainPair(0), PlainPair(9)):  # before its first update, and in the middle of a run
        restore(path, other)
        assert_same(states(other), expected)
        other.train(3)
        straight = PlainPair(5)
        straight.train(3)
        assert_same(states(other), states(straight))


def test_going_back_to_before_the_first_update_makes_moments_zero(tmp_path: Path) -> None:
    pair = PlainPair(4)
    restore(save(tmp_path, 0), pair)
    pair.train(3)
    fresh = PlainPair(3)
    assert_same(states(pair), states(fresh))


def test_what_is_written_is_the_moment_of_begin_not_of_finish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    write = checkpoint_writer.write_part

    def wait_and_write(*arguments: Any) -> Any:
        gate.wait(30)
        return write(*arguments)

    monkeypatch.setattr(checkpoint_writer, "write_part", wait_and_write)
    pair, writer = PlainPair(5), make_writer(tmp_path)
    expected = states(pair)
    writer.begin(pair, trainer_state(pair, 5))  # type: ignore[arg-type]
    assert writer.pending_step == 5 and not writer.is_written
    pair.train(3)
    gate.set()
    path = writer.finish()
    assert writer.pending_step is None
    other = PlainPair(0)
    restore(path, other)
    assert_same(states(other), expected)


@pytest.mark.parametrize("place", ["rank file", "state", "manifest", "folder"])
def test_full_disk_leaves_the_older_checkpoint_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    older = save(tmp_path, 5)

    def fail(*arguments: Any, **keywords: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {
        "rank file": "write_rank_file",
        "state": "write_state",
        "manifest": "seal",
        "folder": "pathlib.Path.mkdir",
    }
    with monkeypatch.context() as patch:
        if place == "folder":
            patch.setattr("pathlib.Path.mkdir", fail)
        else:
            patch.setattr(checkpoint_writer, target[place], fail)
        with pytest.raises(OSError, match="No space left"):
            save(tmp_path, 10, keep_last=1)
    assert find_checkpoint(tmp_path) == (older, [])
    assert not list((tmp_path / "checkpoints").glob("*.partial"))
    assert (tmp_path / "checkpoints" / "latest").read_text() == older.name
    newer = save(tmp_path, 10)  # there is room again
    assert find_checkpoint(tmp_path) == (newer, [])


@pytest.mark.parametrize("place", ["pathlib.Path.rename", "os.fsync"])
def test_death_before_the_end_of_saving_leaves_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    older = save(tmp_path, 5)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place, die)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 10, keep_last=1)
    assert find_checkpoint(tmp_path) == (older, [])


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    pair = PlainPair(0)
    pair.generator.deepspeed.module[0] = torch.nn.Linear(5, 6)
    with pytest.raises(ValueError, match=r"checkpoint's 0.weight has shape \[6, 4\], the model's \[6, 5\]"):
        restore(path, pair)
