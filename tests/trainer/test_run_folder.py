import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from disentangled.data_prep.shard_schema import Manifest, load_manifest
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.run_folder import claim_run_folder, write_run_file
from tests.trainer.tiny_run import tiny_config

FP32: dict[str, object] = {"zero_optimization": {"stage": 0}}


@pytest.fixture
def manifest(shards: Path) -> Manifest:
    return load_manifest(shards)


@pytest.fixture
def config(shards: Path, tmp_path: Path) -> RunConfig:
    return tiny_config(shards, f"run.dir={tmp_path / 'run'}")


@pytest.fixture
def begun(config: RunConfig, manifest: Manifest) -> Path:
    """The folder of a run that has begun."""
    directory = claim_run_folder(config, manifest)
    write_run_file(directory, config, LocalDataset(config.data.shards), FP32)
    return directory


def test_claim_of_a_new_folder_writes_nothing(config: RunConfig, manifest: Manifest) -> None:
    directory = claim_run_folder(config, manifest)
    assert directory == Path(config.run.dir) and not directory.exists()


def test_run_file_says_what_the_run_is(begun: Path, shards: Path, manifest: Manifest) -> None:
    content = json.loads((begun / "run.json").read_text())
    assert content["config"]["data"]["sequence_length"] == 32
    assert (content["dataset_id"], content["vocab_size"]) == (manifest.dataset_id, manifest.vocab_size)
    assert (content["ds_config"], content["special_ids"]["mask"]) == (FP32, manifest.special_ids.mask)
    assert (begun / "spm.model").read_bytes() == (shards / "spm.model").read_bytes()
    assert sorted(path.name for path in begun.iterdir()) == ["run.json", "spm.model"]


def test_claim_by_the_same_run_succeeds_and_keeps_its_file(begun: Path, config: RunConfig, manifest: Manifest) -> None:
    before = (begun / "run.json").read_bytes()
    later = replace(config, log=replace(config.log, every_steps=3), batch=replace(config.batch, micro_sequences=2))
    assert claim_run_folder(later, manifest) == begun
    write_run_file(begun, later, LocalDataset(later.data.shards), FP32)
    assert (begun / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=2", "run.seed is 1, this one's 2"),
        ("model.hidden_size=64", "model.hidden_size is 32, this one's 64"),
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate is .*, this one's 0.5"),
        ("schedule.total_steps=21", "schedule.total_steps is 20, this one's 21"),
    ],
)
def test_claim_by_another_run_names_the_key(
    begun: Path, shards: Path, manifest: Manifest, override: str, message: str
) -> None:
    other = tiny_config(shards, f"run.dir={begun}", override)
    with pytest.raises(ValueError, match=f"{re.escape(str(begun))} holds another run: its {message}") as fault:
        claim_run_folder(other, manifest)
    assert "\n" not in str(fault.value) and "another run.dir" in str(fault.value)


def test_keys_of_other_versions(begun: Path, shards: Path, manifest: Manifest) -> None:
    """One that came later had its default; one that is gone is named as such."""
    file = begun / "run.json"
    content = json.loads(file.read_text())
    del content["config"]["masking"]["unit"]
    file.write_text(json.dumps(content))
    assert claim_run_folder(tiny_config(shards, f"run.dir={begun}"), manifest) == begun
    with pytest.raises(ValueError, match=r"its masking.unit is 'token', this one's 'span'"):
        claim_run_folder(tiny_config(shards, f"run.dir={begun}", "masking.unit=span"), manifest)
    content["config"]["masking"]["gone"] = 1
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"its masking.gone is 1, which this version does not know"):
        claim_run_folder(tiny_config(shards, f"run.dir={begun}"), manifest)


def test_claim_with_another_dataset_is_refused(begun: Path, config: RunConfig, manifest: Manifest) -> None:
    other = replace(manifest, dataset_id="f" * 64)
    with pytest.raises(ValueError, match=f"run on other shards .*{manifest.dataset_id[:12]}.*ffffffffffff"):
        claim_run_folder(config, other)


def test_claim_of_a_foreign_folder_is_refused(config: RunConfig, manifest: Manifest) -> None:
    directory = Path(config.run.dir)
    directory.mkdir()
    claim_run_folder(config, manifest)  # empty: free to take
    (directory / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"is not empty and holds no run: choose another run.dir"):
        claim_run_folder(config, manifest)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"config": {}}', '"text"'])
def test_claim_of_a_folder_with_a_foreign_run_file_is_refused(
    config: RunConfig, manifest: Manifest, content: str
) -> None:
    directory = Path(config.run.dir)
    directory.mkdir()
    (directory / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json is .*: choose another run.dir"):
        claim_run_folder(config, manifest)


def test_run_cut_short_while_it_was_founded_can_begin_again(
    config: RunConfig, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = claim_run_folder(config, manifest)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_run_file(directory, config, LocalDataset(config.data.shards), FP32)
    assert not (directory / "run.json").exists()
    write_run_file(claim_run_folder(config, manifest), config, LocalDataset(config.data.shards), FP32)
    assert (directory / "run.json").exists()
