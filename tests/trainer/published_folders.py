"""Folders of published weights, small, as others write them: transformers' `save_pretrained`, the original code's."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import DebertaV2ForMaskedLM, DebertaV2Model

from disentangled.data_prep.train_tokenizer import TrainingOptions, train_model
from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.published_names import (
    DECODER_POSITIONS,
    DELTA,
    INPUT_POSITIONS,
    MLM_HEAD,
    ORIGINAL_DELTA,
    WORD_EMBEDDINGS,
    State,
)
from tests.data_prep.tiny_corpus import make_documents
from tests.model.tiny_models import hf_config, scramble

# as trained weights are, so that attention is uneven and losses are finite
SPREAD = 0.05


def save_trunk(folder: Path, config: DebertaConfig, tokenizer: bytes | None) -> DebertaV2Model:
    """A `DebertaV2Model`, as transformers saves it: no head, no prefix."""
    model: DebertaV2Model = scramble(DebertaV2Model(hf_config(config)), seed=3, spread=SPREAD)
    return finish(folder, model, tokenizer)


def save_masked_lm(folder: Path, config: DebertaConfig, tokenizer: bytes | None, legacy: bool) -> DebertaV2ForMaskedLM:
    """A `DebertaV2ForMaskedLM`, as transformers saves it."""
    theirs = hf_config(config)
    theirs.legacy = legacy
    model: DebertaV2ForMaskedLM = scramble(DebertaV2ForMaskedLM(theirs), seed=3, spread=SPREAD)
    return finish(folder, model, tokenizer)


def finish(folder: Path, model: DebertaV2Model | DebertaV2ForMaskedLM, tokenizer: bytes | None):
    """Save it with its spm.model."""
    model.save_pretrained(folder)
    if tokenizer is not None:
        (folder / "spm.model").write_bytes(tokenizer)
    return model


def save_original(folder: Path, generator: Generator, discriminator: Discriminator) -> tuple[Path, Path]:
    """Both models of a gdes pair as the original code names files and tensors: (discriminator's, generator's)."""
    shared = generator.state_dict()
    own: State = dict(discriminator.state_dict())
    delta = own.pop(DELTA)
    own |= {ORIGINAL_DELTA: delta, WORD_EMBEDDINGS: shared[WORD_EMBEDDINGS] + delta}
    own |= {name: tensor for name, tensor in shared.items() if name.startswith(MLM_HEAD)}
    own |= {INPUT_POSITIONS: shared[DECODER_POSITIONS], "deberta.embeddings.position_ids": torch.arange(64)[None]}
    theirs = {name: tensor for name, tensor in shared.items() if name != DECODER_POSITIONS}
    theirs[INPUT_POSITIONS] = shared[DECODER_POSITIONS]
    files = folder / "discriminator/pytorch.model-000100.bin", folder / "generator/pytorch.model-000100.bin"
    for file, state, prefix in zip(files, (own, theirs), ("deberta.", "bert."), strict=True):
        file.parent.mkdir(parents=True)
        torch.save({rename(name, prefix): tensor for name, tensor in state.items()}, file)
    return files


def rename(name: str, prefix: str) -> str:
    """`deberta.x` under another prefix."""
    return prefix + name.removeprefix("deberta.") if name.startswith("deberta.") else name


def other_tokenizer(num_pieces: int = 400) -> bytes:
    """An spm.model trained on other text than the shards'."""
    lines = [line for document in make_documents(200, seed=3) for line in document.split("\n")]
    return train_model(lines, TrainingOptions(num_pieces))


def rows_differ(one: Tensor, other: Tensor) -> list[int]:
    """Rows that are not equal bit for bit."""
    return [row for row in range(one.shape[0]) if not torch.equal(one[row], other[row])]
