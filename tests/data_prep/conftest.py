"""One tokenizer and one dataset of made-up text, built once for all tests of this folder."""

from pathlib import Path

import pytest
from rich.progress import Progress

from disentangled.data_prep.build_corpus import build_corpus
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.task_pool import SerialPool
from disentangled.data_prep.tokenizer import Tokenizer, parse_tokenizer
from disentangled.data_prep.train_tokenizer import TrainingOptions, train_model
from tests.data_prep.tiny_corpus import NUM_PIECES, make_documents, write_txt


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    lines = [line for document in make_documents() for line in document.split("\n")]
    return parse_tokenizer(train_model(lines, TrainingOptions(NUM_PIECES)), "spm.model")


@pytest.fixture(scope="session")
def model_path(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "spm.model"
    path.write_bytes(tokenizer.model)
    return path


@pytest.fixture(scope="session")
def dataset(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 60 documents in several shards a split. Copy it before damaging it."""
    directory = tmp_path_factory.mktemp("dataset")
    text = write_txt(directory / "corpus.txt", make_documents())
    output = directory / "shards"
    options = BuildOptions(
        inputs=(str(text),),
        output=str(output),
        tokenizer=str(model_path),
        validation_fraction=0.2,
        shard_tokens=600,
    )
    build_corpus(options, SerialPool(), Progress(disable=True))
    return output
