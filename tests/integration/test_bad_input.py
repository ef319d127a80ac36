"""What a user gets wrong, through the real command: one line that names the thing and the remedy, exit code 2, and
nothing written. More of what is found before the ranks meet is in tests/trainer/test_train.py.
"""

import fcntl
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.checkpoint import list_checkpoints, load_state
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.run_data import make_order, open_windows
from tests.data_prep.tiny_corpus import read_tree
from tests.integration.finished_run import launch_run, run_command_line
from tests.launching import Finished, run_command
from tests.trainer.tiny_run import tiny_config

ALONE = (sys.executable, "-m", "disentangled.trainer.train")


def run_alone(shards: Path, folder: Path, *overrides: str) -> Finished:
    """The run's command as one rank, without a launcher."""
    command = run_command_line(shards, folder, *overrides)
    return run_command(*ALONE, *command[command.index("--recipe") :])


def assert_one_line(finished: Finished, *words: str) -> None:
    assert finished.code == 2, finished
    lines = finished.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), finished
    assert all(word in lines[0] for word in words), finished


def test_missing_shards_are_named_once_by_two_ranks(tmp_path: Path) -> None:
    finished = launch_run(tmp_path / "shards", tmp_path / "run")
    assert_one_line(finished, f"{tmp_path / 'shards'}: no manifest.json", "run build_corpus")
    assert list(tmp_path.iterdir()) == []


def test_exchanged_tokenizer_is_refused(shards: Path, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(shards, tmp_path / "shards"))
    (bad / "spm.model").write_bytes((bad / "spm.model").read_bytes() + b"\0")
    assert_one_line(run_alone(bad, tmp_path / "run"), str(bad / "spm.model"), "sha256 differs", "restore the original")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_indivisible_batch_of_two_ranks_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    finished = launch_run(shards, tmp_path / "run", "batch.micro_sequences=3")
    assert_one_line(finished, "micro_sequences 3 x 2 ranks", "set batch.global_sequences=6 or batch.micro_sequences=2")
    assert not (tmp_path / "run").exists()


def test_folder_of_something_else_is_refused(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\end{document}")
    before = read_tree(tmp_path)
    assert_one_line(run_alone(shards, tmp_path), f"run.dir {tmp_path} is not empty and holds no run", "another run.dir")
    assert read_tree(tmp_path) == before


def test_folder_of_another_run_is_refused(straight: Path, shards: Path) -> None:
    before = read_tree(straight)
    finished = run_alone(shards, straight, "run.seed=2")
    assert_one_line(finished, f"run.dir {straight} holds another run", "run.seed is 1, this one's 2", "another run.dir")
    assert read_tree(straight) == before


def test_folder_in_use_is_refused(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    before = read_tree(folder)
    with (folder / "lock").open("r+") as file:  # whoever reads it in this process and closes it gives the lock up
        fcntl.lockf(file, fcntl.LOCK_EX)
        finished = run_alone(shards, folder)
    assert_one_line(
        finished, f"run.dir {folder} is in use by process ", "wait for its end, stop it, or use another run.dir"
    )
    assert read_tree(folder) == before


def test_run_without_a_whole_checkpoint_is_refused(straight: Path, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    for checkpoint in list_checkpoints(folder):
        (checkpoint / "trainer_state.json").unlink()
    before = read_tree(folder)
    finished = run_alone(shards, folder)
    assert_one_line(finished, "no checkpoint of", "step_00000090", "step_00000045", "trainer_state.json is missing")
    assert f"remove {folder / 'checkpoints'} to begin at step 0 again" in finished.stderr
    assert read_tree(folder).keys() == before.keys()


@pytest.mark.slow
def test_shard_found_damaged_in_training_is_named_and_the_run_goes_on_once_it_is_mended(
    shards: Path, tmp_path: Path
) -> None:
    # one shard after another, so that the last one's damage is found on the way
    own, folder = Path(shutil.copytree(shards, tmp_path / "shards")), tmp_path / "run"
    options = ("data.shuffle_block_shards=1", "schedule.total_steps=110")
    store = open_windows(tiny_config(own, *options), LocalDataset(own), "train")
    order = make_order(tiny_config(own, *options), store)
    shard = int(store.pieces(order.windows(np.arange(8 * 110))).shard[-1])
    path = own / load_manifest(own).splits["train"][shard].path
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    whole = path.read_bytes()
    path.write_bytes(content)

    finished = launch_run(own, folder, *options)
    saved = load_state(list_checkpoints(folder)[0]).step
    assert 0 < saved < 110
    assert_one_line(finished, f"{path}: xxh3_128 differs", f"saved at step {saved}: then run the same command again")

    path.write_bytes(whole)
    mended = launch_run(own, folder, *options)
    assert mended.code == 0 and f"resuming at step {saved}" in mended.stdout, mended
