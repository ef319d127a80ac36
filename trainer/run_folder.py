"""The folder of one run: it belongs to one experiment, and says which.

What: RUN/run.json holds the resolved config, the ds_config and the dataset's id. Launching again with the same
experiment resumes; with another it is an error that names the first key that differs, so no two runs share a folder.
Layout: run.json, spm.model, metrics.jsonl, tensorboard/, checkpoints/.
Used by: trainer/train.py, trainer/export.py. Tested by tests/trainer/test_run_folder.py.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from disentangled.data_prep.shard_schema import Manifest
from disentangled.trainer.dataset import Dataset, tokenizer_path
from disentangled.trainer.ds_config import describe_engine
from disentangled.trainer.run_config import RunConfig, differing_keys, get_key, to_dict

RUN_FILE = "run.json"
TOKENIZER_FILE = "spm.model"
FIRST_FILES = (TOKENIZER_FILE, f"{RUN_FILE}.tmp")  # all that is there where a first start was cut short


def claim_run_folder(config: RunConfig, ds_config: dict[str, Any], manifest: Manifest) -> Path:
    """The run's folder, which is this run's already or free to become it; nothing is written.

    Raises:
        ValueError: the folder holds another run or something else.
    """
    directory = Path(config.run.dir)
    run_file = directory / RUN_FILE
    if run_file.exists():
        saved = read_run_file(run_file)
        if saved["dataset_id"] != manifest.dataset_id:
            raise ValueError(
                f"run.dir {directory} holds a run on other shards (dataset {saved['dataset_id'][:12]}, these are "
                f"{manifest.dataset_id[:12]}): use those or another run.dir"
            )
        differing = differing_keys(saved["config"], config)
        if differing:
            key = differing[0]
            section, name = key.split(".")
            old = saved["config"].get(section, {}).get(name)
            raise ValueError(
                f"run.dir {directory} holds another run: its {key} is {old!r}, this one's {get_key(config, key)!r}; "
                "use the same recipe to go on with it, or another run.dir"
            )
        old_engine, engine = describe_engine(saved["ds_config"]), describe_engine(ds_config)
        if old_engine != engine:
            raise ValueError(
                f"run.dir {directory} holds a run of {old_engine}, the --engine file says {engine}, whose checkpoints "
                "differ: use the run's own --engine or another run.dir"
            )
    elif directory.exists() and any(path.name not in FIRST_FILES for path in directory.iterdir()):
        raise ValueError(f"run.dir {directory} is not empty and holds no run: choose another run.dir")
    return directory


def read_run_file(path: Path) -> dict[str, Any]:
    """The content of a run.json; ValueError where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): choose another run.dir") from error
    if not isinstance(content, dict) or not {"config", "ds_config", "dataset_id"} <= content.keys():
        raise ValueError(f"{path} is not a run of ours: choose another run.dir")
    return content


def write_run_file(directory: Path, config: RunConfig, dataset: Dataset, ds_config: dict[str, Any]) -> None:
    """Record what the run is, once, with the tokenizer that its export will need."""
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / RUN_FILE).exists():
        return
    manifest = dataset.manifest
    shutil.copyfile(tokenizer_path(dataset), directory / TOKENIZER_FILE)
    content = {
        "config": to_dict(config),
        "ds_config": ds_config,
        "dataset_id": manifest.dataset_id,
        "tokenizer_sha256": manifest.tokenizer_sha256,
        "vocab_size": manifest.vocab_size,
        "num_pieces": manifest.num_pieces,
        "special_ids": asdict(manifest.special_ids),
    }
    temporary = directory / f"{RUN_FILE}.tmp"
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.rename(directory / RUN_FILE)
