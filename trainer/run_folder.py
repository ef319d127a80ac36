"""The folder of one run: it belongs to one experiment, and says which.

What: RUN/run.json holds the resolved config, the ds_config and the dataset's id. Launching again with the same
experiment resumes; with another it is an error that names the first key that differs, so no two runs share a folder.
Another stage of ZeRO, precision or number of ranks is the same experiment. One launch at a time may work in it.
Layout: run.json, spm.model, metrics.jsonl, events.jsonl, tensorboard/, checkpoints/; lock, stacks/ of ranks that hung,
skipped_samples.json; report.html, embedding_cosine.jsonl, probe.jsonl.
Used by: trainer/assemble.py, trainer/export.py. Tested by tests/trainer/test_run_folder.py.
"""

import fcntl
import json
import os
import shutil
import socket
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from disentangled.data_prep.shard_schema import Manifest
from disentangled.trainer.dataset import Dataset, tokenizer_path
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.events import EVENTS_FILE
from disentangled.trainer.run_config import RunConfig, differing_keys, dotted_keys, get_key, to_dict
from disentangled.trainer.skipped_samples import SKIPS_FILE
from disentangled.trainer.watchdog import STACKS_FOLDER

RUN_FILE = "run.json"
TOKENIZER_FILE = "spm.model"
LOCK_FILE = "lock"
COSINE_FILE = "embedding_cosine.jsonl"  # of trainer/embedding_cosine.py, for the report
PROBE_FILE = "probe.jsonl"  # of finetune/probe.py, which has the same name, for the report
# all that may be there before a run has begun: a first start was cut short, or samples are to be passed over
FIRST_FILES = (TOKENIZER_FILE, f"{RUN_FILE}.tmp", LOCK_FILE, EVENTS_FILE, STACKS_FOLDER, SKIPS_FILE)

LOCKS: list[TextIO] = []  # kept open: closing one gives its folder free


def claim_run_folder(config: RunConfig, manifest: Manifest) -> Path:
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
            known = key in dotted_keys(config)
            default = get_key(RunConfig(), key) if known else None
            old = saved["config"].get(section, {}).get(name, default)
            new = f"this one's {get_key(config, key)!r}" if known else "which this version does not know"
            raise ValueError(
                f"run.dir {directory} holds another run: its {key} is {old!r}, {new}; "
                "use the same recipe to go on with it, or another run.dir"
            )
    elif directory.exists() and any(path.name not in FIRST_FILES for path in directory.iterdir()):
        raise ValueError(f"run.dir {directory} is not empty and holds no run: choose another run.dir")
    return directory


def lock_run_folder(directory: Path, ranks: Ranks) -> None:
    """Keep other launches out of the folder until this process ends, however it does; called by every rank.

    Raises:
        ValueError: another launch is at work there; on every rank.
    """
    holder = ""
    if ranks.is_first:
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / LOCK_FILE).open("a+", encoding="utf-8")
        try:
            # a record lock: it works over NFS, and a forked worker that outlives this process does not hold it
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another launch"
            file.close()
        else:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            LOCKS.append(file)
    holder = ranks.copy_from_first(holder)
    if holder:
        raise ValueError(
            f"run.dir {directory} is in use by {holder}: wait for its end, stop it, or use another run.dir"
        )


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
