"""Learning rates by layer: each parameter is in one group, rates fall by the layer, biases and norms do not decay."""

import pytest
from transformers import BertConfig, BertForSequenceClassification

from disentangled.finetune.optimizer_groups import find_height, layer_groups
from tests.finetune.small_models import small_model


def test_rates_fall_from_the_head_to_the_embeddings() -> None:
    model = small_model("ForSequenceClassification")  # three layers
    decayed = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    groups = layer_groups(model, 1e-3, 0.5, 0.01, decayed)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    names = dict(model.named_parameters())
    assert sum(len(group["params"]) for group in groups) == len(names) == len(of)
    expected = {
        "classifier.weight": (1e-3, 0.01),
        "classifier.bias": (1e-3, 0.0),
        "pooler.dense.weight": (1e-3, 0.01),
        "deberta.encoder.layer.2.output.dense.weight": (5e-4, 0.01),
        "deberta.encoder.layer.0.output.LayerNorm.weight": (1.25e-4, 0.0),
        "deberta.encoder.rel_embeddings.weight": (6.25e-5, 0.01),
        "deberta.embeddings.word_embeddings.weight": (6.25e-5, 0.01),
    }
    for name, (rate, decay) in expected.items():
        group = of[id(names[name])]
        assert (group["lr"], group["weight_decay"]) == (rate, decay), name


@pytest.mark.parametrize(
    ("name", "height"),
    [
        ("model.layers.21.mlp.Wo.weight", 22),
        ("model.final_norm.weight", None),
        ("model.embeddings.norm.weight", 0),
        ("head.dense.weight", None),
    ],
)
def test_names_of_modernbert_are_understood(name: str, height: int | None) -> None:
    assert find_height(name, "model") == height


def test_poolers_inside_the_trunk_stand_above_it() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    model = BertForSequenceClassification(BertConfig(vocab_size=20, **sizes))
    heights = {name: find_height(name, "bert") for name, _ in model.named_parameters()}
    assert heights["bert.pooler.dense.weight"] is None and heights["bert.encoder.layer.1.output.dense.bias"] == 2
