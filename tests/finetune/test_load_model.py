"""Models with heads: dropout of the head alone, random weights on request, other architectures, half a model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, set_seed

from disentangled.finetune.choices import Choices
from disentangled.finetune.fused_encoder import FusedEncoder
from disentangled.finetune.kinds import Kind
from disentangled.finetune.load_model import load_model
from disentangled.finetune.sequences import Sequences
from disentangled.finetune.spans import Spans
from disentangled.finetune.tags import Tags

KINDS: dict[str, Kind] = {
    "sequence": Sequences(("0", "1"), ("accuracy",)),
    "choice": Choices(),
    "spans": Spans(False),
    "tags": Tags(("B-X", "I-X", "O")),
}


def load(model: Path, kind: str = "sequence", **changes: object) -> tuple[nn.Module, str]:
    settings = {"from_scratch": False, "task_dropout": 0.3, "use_accelerate": True} | changes
    loaded, lines = load_model(str(model), KINDS[kind], **settings)
    return loaded, "; ".join(lines)


@pytest.mark.parametrize("kind", KINDS)
def test_task_dropout_is_of_the_head_alone(pretrained: Path, kind: str) -> None:
    model, said = load(pretrained, kind)
    shares = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert {name for name, share in shares.items() if share == 0.3} == (set() if kind == "spans" else {"dropout"})
    assert ("ForQuestionAnswering has none" in said) == (kind == "spans")


def test_debertav2_is_accelerated_unless_not_wanted(pretrained: Path) -> None:
    assert isinstance(load(pretrained)[0].deberta.encoder, FusedEncoder)
    assert not isinstance(load(pretrained, use_accelerate=False)[0].deberta.encoder, FusedEncoder)


def test_from_scratch_keeps_sizes_and_nothing_else(pretrained: Path) -> None:
    set_seed(1)
    trained, random = load(pretrained)[0].state_dict(), load(pretrained, from_scratch=True)[0].state_dict()
    assert {name: tensor.shape for name, tensor in trained.items()} == {name: t.shape for name, t in random.items()}
    name = "deberta.encoder.layer.1.output.dense.weight"
    assert torch.equal(trained[name], load_file(pretrained / "model.safetensors")[name.removeprefix("deberta.")])
    assert not torch.equal(trained[name], random[name])


def test_other_architectures_run_as_they_are(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path)
    model, said = load(tmp_path)
    assert model.dropout.p == 0.3 and model.bert.embeddings.dropout.p == 0.1
    assert "transformers' own" in said


def test_half_a_model_is_refused(pretrained: Path, tmp_path: Path) -> None:
    weights = load_file(pretrained / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layer.1" not in name}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((pretrained / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"lacks \d+ of its encoder's tensors, such as deberta\.encoder\.layer\.1"):
        load(tmp_path)
