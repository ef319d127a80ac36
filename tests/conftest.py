"""Fixtures that several folders of tests share.

Without a GPU Triton's programs run in its interpreter, in the process of the tests. Triton looks at the variable when a
program is defined, so it is set before anything imports Triton. Commands that tests start (tests/launching.py) do not
see it.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.launching import run_command

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def _give_back_gpu_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """So that several processes of tests fit on one GPU."""
    yield
    if request.node.get_closest_marker("requires_gpu") is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of about 30,000 tokens in three training shards and three of validation. Copy it before damaging it."""
    folder = tmp_path_factory.mktemp("shards")
    text = write_txt(folder / "corpus.txt", make_documents(600))
    built = run_command(
        sys.executable, "-m", "disentangled.data_prep.build_corpus", "--input", str(text), "--output",
        str(folder / "shards"), "--train-tokenizer", "--vocab-size", "512", "--validation-fraction", "0.1",
        "--seed", "1", "--shard-tokens", "30000",
    )  # fmt: skip
    assert built.code == 0, built
    return folder / "shards"
