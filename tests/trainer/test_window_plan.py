import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from disentangled.data_prep.shard_schema import Manifest, load_manifest, open_shard
from disentangled.trainer import window_plan
from disentangled.trainer.packing import pack_windows
from disentangled.trainer.window_plan import PlanKey, WindowPlan, load_or_compute_plan, read_plan


@pytest.fixture
def dataset(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("plans")))


@pytest.fixture
def manifest(dataset: Path) -> Manifest:
    return load_manifest(dataset)


@pytest.fixture
def key(manifest: Manifest) -> PlanKey:
    return PlanKey(manifest.dataset_id, "train", 64, 8, "best_fit")


def assert_equal(one: WindowPlan, two: WindowPlan) -> None:
    for name in ("shard_windows", "first_piece", "start", "length"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name


def test_plan_is_that_of_each_shard_after_another(dataset: Path, manifest: Manifest, key: PlanKey) -> None:
    plan = load_or_compute_plan(dataset, manifest, key)
    first_window = first_piece = 0
    for record in manifest.splits["train"]:
        packed = pack_windows(open_shard(dataset, record).offsets, 64, 8)
        pieces = slice(first_piece, first_piece + packed.start.size)
        assert np.array_equal(plan.start[pieces], packed.start)
        assert np.array_equal(plan.length[pieces], packed.length)
        bounds = plan.first_piece[first_window : first_window + packed.num_windows + 1]
        assert np.array_equal(bounds - first_piece, packed.first_piece)
        first_window, first_piece = first_window + packed.num_windows, first_piece + packed.start.size
    assert (first_window, first_piece) == (plan.num_windows, plan.start.size)
    assert plan.shard_windows.sum() == plan.num_windows


def test_plan_is_kept_and_read_again(
    dataset: Path, manifest: Manifest, key: PlanKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = load_or_compute_plan(dataset, manifest, key)
    assert (dataset / "plans" / "train-best_fit-64-8.arrow").exists()
    monkeypatch.setattr(window_plan, "compute_plan", None)
    assert_equal(load_or_compute_plan(dataset, manifest, key), computed)


def test_plan_takes_few_bytes(dataset: Path, manifest: Manifest) -> None:
    key = PlanKey(manifest.dataset_id, "train", 512, 8, "best_fit")
    plan = load_or_compute_plan(dataset, manifest, key)
    size = 8 * plan.first_piece.size + 4 * plan.start.size + 2 * plan.length.size
    assert plan.length.dtype == np.uint16 and plan.start.dtype == np.uint32
    assert size < (dataset / "plans" / key.name).stat().st_size < size + 4096


@pytest.mark.parametrize(
    "change", [{"sequence_length": 128}, {"packing": "one_piece"}, {"minimum_piece_tokens": 1}, {"dataset_id": "other"}]
)
def test_plan_of_something_else_is_not_taken(
    dataset: Path, manifest: Manifest, key: PlanKey, change: dict[str, object]
) -> None:
    load_or_compute_plan(dataset, manifest, key)
    other = replace(key, **change)  # type: ignore[arg-type]
    assert read_plan(dataset / "plans" / key.name, other) is None
    assert_equal(load_or_compute_plan(dataset, manifest, other), window_plan.compute_plan(dataset, manifest, other))


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_plan_is_computed_again(dataset: Path, manifest: Manifest, key: PlanKey, damage: str) -> None:
    computed = load_or_compute_plan(dataset, manifest, key)
    path = dataset / "plans" / key.name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[content.index(computed.start[:4].tobytes())] ^= 1
    path.write_bytes({"cut": content[:-100], "flip": content, "empty": b""}[damage])
    assert read_plan(path, key) is None
    assert_equal(load_or_compute_plan(dataset, manifest, key), computed)
    assert read_plan(path, key) is not None


def test_dataset_that_cannot_be_written_to_is_planned_all_the_same(
    dataset: Path, manifest: Manifest, key: PlanKey
) -> None:
    (dataset / "plans").write_text("a file where the folder would be")
    assert load_or_compute_plan(dataset, manifest, key).num_windows > 0


def test_long_rows_have_wider_lengths() -> None:
    packed = pack_windows(np.array([0, 100_000, 100_003]), 70_000, 8)
    plan = window_plan.join_windows([packed], 70_000)
    assert plan.length.dtype == np.uint32 and plan.length.max() == 69_998
