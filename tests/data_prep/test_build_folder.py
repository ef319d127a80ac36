"""build_folder.py: one build at a time, going on with the same plan alone, and nothing left where nothing was done."""

from pathlib import Path

import pytest

from disentangled.data_prep.build_folder import BuildFolder, unit_record_path
from disentangled.data_prep.whole_file import write_file
from tests.data_prep.tiny_corpus import read_tree

PLAN = {"inputs": [{"name": "a.txt", "size_bytes": 3}], "seed": 1}


def commit_unit(folder: BuildFolder, unit: int = 0) -> None:
    write_file(folder.path / "train" / f"shard-text-{unit:06d}.arrow", b"shard")
    write_file(unit_record_path(folder.path, unit), b"{}")


def test_finished_build_keeps_its_files_and_no_others(tmp_path: Path):
    with BuildFolder(tmp_path / "deep" / "out", PLAN) as folder:
        commit_unit(folder)
        write_file(folder.path / "manifest.json", b"2")
        folder.finish()
    assert read_tree(tmp_path) == {"deep/out/train/shard-text-000000.arrow": b"shard", "deep/out/manifest.json": b"2"}


@pytest.mark.parametrize("stop", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_build_that_committed_nothing_leaves_nothing(tmp_path: Path, stop: type[BaseException]):
    with pytest.raises(stop), BuildFolder(tmp_path / "deep" / "out", PLAN) as folder:
        write_file(folder.path / "train" / "shard-text-000000.arrow", b"shard")
        write_file(folder.path / "spm.model", b"model")
        raise stop
    assert list(tmp_path.iterdir()) == []


def test_build_that_goes_on_after_a_kill_and_fails_leaves_nothing(tmp_path: Path):
    killed = BuildFolder(tmp_path / "out", PLAN)
    killed.__enter__()  # and is gone, without a word: its folders are there, made by nobody who still runs
    assert killed._lock is not None
    killed._lock.close()
    with pytest.raises(KeyboardInterrupt), BuildFolder(tmp_path / "out", PLAN):
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


def test_build_that_committed_a_unit_keeps_it_and_goes_on(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), BuildFolder(tmp_path / "out", PLAN) as folder:
        commit_unit(folder)
        write_file(folder.path / "train" / "shard-text-000001.arrow.host-1.tmp", b"half")
        raise KeyboardInterrupt
    with BuildFolder(tmp_path / "out", PLAN) as folder:
        assert folder.has_progress
        assert [path.name for path in (tmp_path / "out" / "train").iterdir()] == ["shard-text-000000.arrow"]


def test_users_own_folder_stays(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt), BuildFolder(tmp_path / "out", PLAN):
        raise KeyboardInterrupt
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"seed": 2}, r"another seed \(1 before, 2 now\): take back the change, remove the folder or"),
        ({"inputs": [{"name": "a.txt", "size_bytes": 4}]}, r"another inputs \(a\.txt has changed\)"),
        ({"inputs": []}, r"another inputs \(1 before, 0 now\)"),
    ],
)
def test_other_plan_does_not_go_on_and_harms_nothing(tmp_path: Path, change: dict, fault: str):
    with BuildFolder(tmp_path / "out", PLAN) as folder:
        commit_unit(folder)
    before = read_tree(tmp_path)
    with (
        pytest.raises(ValueError, match=f"out: holds an unfinished build with {fault}"),
        BuildFolder(tmp_path / "out", PLAN | change),
    ):
        pytest.fail("the folder was claimed")
    assert read_tree(tmp_path) == before


def test_other_plan_may_take_over_where_nothing_is_committed(tmp_path: Path):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    write_file(tmp_path / "out" / "unfinished" / "plan.json", b'{"seed": 3}')
    with BuildFolder(tmp_path / "out", PLAN) as folder:
        commit_unit(folder)
    with BuildFolder(tmp_path / "out", PLAN) as folder:
        assert folder.has_progress


def test_second_build_in_one_folder_is_refused_and_harms_nothing(tmp_path: Path):
    with BuildFolder(tmp_path / "out", PLAN) as folder:
        commit_unit(folder)
        before = read_tree(tmp_path)
        with (
            pytest.raises(
                ValueError, match=r"out: another build is writing here \(process \d+ on .*\): wait for it or"
            ),
            BuildFolder(tmp_path / "out", PLAN),
        ):
            pytest.fail("the folder was claimed")
        assert read_tree(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("manifest.json", r"out: holds a finished dataset: name another --output or remove it"),
        ("notes.txt", r"out: not empty: name a new or empty folder"),
        (None, r"out: exists and is no folder"),
    ],
)
def test_place_that_is_taken_is_refused_and_left_alone(tmp_path: Path, name: str | None, fault: str):
    taken = tmp_path / "out" if name is None else tmp_path / "out" / name
    taken.parent.mkdir(exist_ok=True)
    taken.write_bytes(b"mine")
    with pytest.raises(ValueError, match=fault), BuildFolder(tmp_path / "out", PLAN):
        pytest.fail("the folder was claimed")
    assert read_tree(tmp_path) == {taken.relative_to(tmp_path).as_posix(): b"mine"}
