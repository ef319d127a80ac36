"""What the options change in the Trainer itself: rates by layer in its optimizer, an adversarial term in its loss."""

from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.finetune.load_model import load_tokenizer
from disentangled.finetune.read_task import read_task
from disentangled.finetune.run_task import make_trainer
from disentangled.finetune.task_trainer import TaskTrainer
from tests.finetune.tiny_tasks import tiny_options, write_texts


@pytest.fixture
def build(pretrained: Path, tmp_path: Path) -> Any:
    """A function of options that makes a Trainer."""
    train = write_texts(tmp_path / "a.jsonl", 8, 1)
    files = {"train": (train,), "validation": (train,), "text_columns": ("text",)}

    def build(**changes: Any) -> TaskTrainer:
        options = tiny_options("sequence", pretrained, tmp_path / "run", **files | changes)
        return make_trainer(options, read_task(options), load_tokenizer(options.model))[0]

    return build


def test_rates_of_the_optimizer_fall_with_the_layer(build: Any) -> None:
    optimizer = build(layer_decay=0.5).create_optimizer()
    # two layers: embeddings, both layers, head
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [3e-3 * 0.5**depth for depth in (3, 2, 1, 0)]
    assert {group["lr"] for group in build().create_optimizer().param_groups} == {3e-3}


def test_adam_has_the_papers_settings_and_spares_biases_and_norms(build: Any) -> None:
    trainer = build()
    optimizer = trainer.create_optimizer()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-6
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.model.named_parameters():
        assert decay[id(parameter)] == (0.0 if "LayerNorm" in name or name.endswith("bias") else 0.01), name


def test_the_adversarial_term_is_in_the_loss_of_training_alone(build: Any) -> None:
    plain, adversarial = build(), build(sift_weight=2.0, sift_init=0.1)
    batch = next(iter(plain.get_train_dataloader()))
    plain.model.eval()
    adversarial.model.eval()
    task_loss = plain.compute_loss(plain.model, dict(batch))
    assert torch.equal(adversarial.compute_loss(adversarial.model, dict(batch)), task_loss)
    for module in (plain.model, adversarial.model):  # dropout is 0 in the tiny model
        module.train()
    assert torch.equal(plain.compute_loss(plain.model, dict(batch)), task_loss)
    assert adversarial.compute_loss(adversarial.model, dict(batch)) > task_loss
