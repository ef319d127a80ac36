import json
from collections.abc import Callable
from pathlib import Path

import pytest

from disentangled.trainer.checkpoint import find_checkpoint, list_checkpoints, load_state
from disentangled.trainer.model_files import rank_file
from tests.trainer.plain_checkpoints import save

WEIGHTS = f"generator/{rank_file(0)}"
OTHER_WEIGHTS = f"discriminator/{rank_file(0)}"


def names(run_dir: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run_dir)]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


DAMAGES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "torn weights": (WEIGHTS, cut_short, f"{WEIGHTS} has 100 bytes instead of "),
    "flipped byte": (OTHER_WEIGHTS, flip_byte, f"{OTHER_WEIGHTS} has another xxh3_128"),
    "missing weights": (OTHER_WEIGHTS, Path.unlink, f"{OTHER_WEIGHTS} is missing"),
    "missing state": ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
    "missing manifest": ("manifest.json", Path.unlink, "manifest.json"),
    "torn manifest": ("manifest.json", cut_short, "manifest.json"),
}


def test_trainers_state_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    assert path == tmp_path / "checkpoints" / "step_00000010"
    assert find_checkpoint(tmp_path) == (path, [])
    state = load_state(path)
    assert (state.step, state.consumed_samples, state.world_size, state.sums) == (10, 80, 1, [1.5, 10.0])
    assert state.models["generator"].shapes["0.weight"] == [6, 4]
    assert state.models["discriminator"].counters == {"step": (10.0, True)}
    assert (state.norms["generator"].mean, state.norms["generator"].num_updates) == (1.5, 10)
    assert (tmp_path / "checkpoints" / "latest").read_text() == path.name


def test_manifest_names_every_file_but_itself(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    listed = set(json.loads((path / "manifest.json").read_text()))
    present = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert listed == present - {"manifest.json"}
    assert listed == {"trainer_state.json", WEIGHTS, OTHER_WEIGHTS}


def test_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 10)
    content = json.loads((path / "trainer_state.json").read_text())
    for change in ({"format_version": 3}, {}):
        (path / "trainer_state.json").write_text(json.dumps({"step": content["step"]} | change))
        version = change.get("format_version", 1)
        with pytest.raises(ValueError, match=f"has format {version}, this program reads 2: go on"):
            load_state(path)


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
        cut_short(save(tmp_path, step) / WEIGHTS)
    found, faults = find_checkpoint(tmp_path)
    assert found is None and len(faults) == 2


def test_partial_checkpoint_is_never_considered(tmp_path: Path) -> None:
    older = save(tmp_path, 5)
    save(tmp_path, 10).rename(tmp_path / "checkpoints" / "step_00000010.partial")
    assert find_checkpoint(tmp_path) == (older, [])
    save(tmp_path, 15)
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_save_keeps_the_newest(tmp_path: Path, keep_last: int) -> None:
    for step in (5, 10, 15, 20):
        save(tmp_path, step, keep_last=keep_last)
    assert names(tmp_path) == ["step_00000020", "step_00000015", "step_00000010"][:keep_last]


def test_save_keeps_those_at_the_interval(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step, keep_last=1, keep_every_steps=10)
    assert names(tmp_path) == ["step_00000025", "step_00000020", "step_00000010"]


def test_save_after_a_fall_back_removes_the_damaged_future(tmp_path: Path) -> None:
    # resumed at 5 because 10 was damaged, stopped at 7: with keep_last 1 the damaged one must not push the good one out
    save(tmp_path, 5)
    cut_short(save(tmp_path, 10) / WEIGHTS)
    newest = save(tmp_path, 7, keep_last=1)
    assert names(tmp_path) == ["step_00000007"]
    assert find_checkpoint(tmp_path) == (newest, [])


def test_save_replaces_a_damaged_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    cut_short(save(tmp_path, 10) / WEIGHTS)
    assert find_checkpoint(tmp_path)[0] is None
    path = save(tmp_path, 10)
    assert find_checkpoint(tmp_path) == (path, [])
