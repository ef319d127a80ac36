import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from disentangled.trainer import window_plan
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.packing import pack_windows
from disentangled.trainer.window_plan import PlanKey, WindowPlan, load_or_compute_plan, read_plan


@pytest.fixture
def dataset(shards: Path, tmp_path: Path) -> LocalDataset:
    return LocalDataset(shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("plans")))


@pytest.fixture
def key(dataset: LocalDataset) -> PlanKey:
    return PlanKey(dataset.manifest.dataset_id, "train", 64, 8, "best_fit")


def assert_equal(one: WindowPlan, two: WindowPlan) -> None:
    for name in ("shard_windows", "first_piece", "start", "length"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_plan_is_that_of_each_shard_after_another(dataset: LocalDataset, key: PlanKey) -> None:
    plan = load_or_compute_plan(dataset, key)
    first_window = first_piece = 0
    for record in dataset.manifest.splits["train"]:
        packed = pack_windows(dataset.open(record).offsets, 64, 8)
        pieces = slice(first_piece, first_piece + packed.start.size)
        assert np.array_equal(plan.start[pieces], packed.start)
        assert np.array_equal(plan.length[pieces], packed.length)
        bounds = plan.first_piece[first_window : first_window + packed.num_windows + 1]
        assert np.array_equal(bounds - first_piece, packed.first_piece)
        first_window, first_piece = first_window + packed.num_windows, first_piece + packed.start.size
    assert (first_window, first_piece) == (plan.num_windows, plan.start.size)
    assert plan.shard_windows.sum() == plan.num_windows


def test_plan_is_kept_and_read_again(dataset: LocalDataset, key: PlanKey, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = load_or_compute_plan(dataset, key)
    assert (dataset.directory / "plans" / "train-best_fit-64-8.arrow").exists()
    monkeypatch.setattr(window_plan, "compute_plan", None)
    assert_equal(load_or_compute_plan(dataset, key), computed)


def test_plan_takes_few_bytes(dataset: LocalDataset) -> None:
    key = PlanKey(dataset.manifest.dataset_id, "train", 512, 8, "best_fit")
    plan = load_or_compute_plan(dataset, key)
    size = 8 * plan.first_piece.size + 4 * plan.start.size + 2 * plan.length.size
    assert plan.length.dtype == np.uint16 and plan.start.dtype == np.uint32
    assert size < (dataset.directory / "plans" / key.name).stat().st_size < size + 4096


@pytest.mark.parametrize(
    "change", [{"sequence_length": 128}, {"packing": "one_piece"}, {"minimum_piece_tokens": 1}, {"dataset_id": "other"}]
)
def test_plan_of_something_else_is_not_taken(dataset: LocalDataset, key: PlanKey, change: dict[str, object]) -> None:
    load_or_compute_plan(dataset, key)
    other = replace(key, **change)  # type: ignore[arg-type]
    assert read_plan(dataset.directory / "plans" / key.name, other) is None
    assert_equal(load_or_compute_plan(dataset, other), window_plan.compute_plan(dataset, other))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_plan_is_computed_again(dataset: LocalDataset, key: PlanKey, damage: str) -> None:
    computed = load_or_compute_plan(dataset, key)
    path = dataset.directory / "plans" / key.name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(computed.start[:4].tobytes())] ^= 1
    path.write_bytes({"cut": content[:-100], "flip": content, "empty": b""}[damage])
    assert read_plan(path, key) is None
    assert_equal(load_or_compute_plan(dataset, key), computed)
    assert read_plan(path, key) is not None


def test_dataset_that_cannot_be_written_to_is_planned_all_the_same(dataset: LocalDataset, key: PlanKey) -> None:
    (dataset.directory / "plans").write_text("a file where the folder would be")
    assert load_or_compute_plan(dataset, key).num_windows > 0


def test_long_rows_have_wider_lengths() -> None:
    packed = pack_windows(np.array([0, 100_000, 100_003]), 70_000, 8)
    plan = window_plan.join_windows([packed], 70_000)
    assert plan.length.dtype == np.uint32 and plan.length.max() == 69_998
