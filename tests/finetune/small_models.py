"""Small transformers DebertaV2 models with every head, batches of mixed lengths, and one training pass of each."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import DebertaV2Config

from tests.model.tiny_models import largest_error, padded_batch, scramble

IGNORED = -100
LENGTHS = (19, 1, 7, 12)
NUM_LABELS = 3
NUM_CHOICES = 2  # LENGTHS are two questions of two choices then

# transformers takes its scale through float32, also in float64: tests/model/test_parity.py
BOUND = 1e-7


def small_config(**changes: Any) -> DebertaV2Config:
    """DeBERTaV3's architecture in width 32; buckets so narrow that 19 tokens reach the last of them."""
    sizes: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "relative_attention": True,
        "max_relative_positions": 16,
        "position_buckets": 8,
        "pos_att_type": ["c2p", "p2c"],
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "position_biased_input": False,
        "type_vocab_size": 0,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": NUM_LABELS,
    }
    return DebertaV2Config(**sizes | changes)


def small_model(head: str = "Model", dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """DebertaV2<head> with random values in every parameter, the same ones each time."""
    if head == "ForQuestionAnswering":
        changes = {"num_labels": 2} | changes
    model: nn.Module = getattr(transformers, f"DebertaV2{head}")(small_config(**changes))
    return scramble(model).to(dtype)


def small_batch(head: str = "Model", lengths: tuple[int, ...] = LENGTHS) -> dict[str, Tensor]:
    """What the head takes: ids and mask, and labels that ignore padding where they can."""
    ids, mask = padded_batch(lengths)
    labels = torch.arange(ids.numel()).view(ids.shape) % NUM_LABELS
    per_token = torch.where(mask.bool(), labels, IGNORED)
    batch = {"input_ids": ids, "attention_mask": mask}
    if head in ("ForMaskedLM", "ForTokenClassification"):
        batch["labels"] = per_token
    elif head == "ForSequenceClassification":
        batch["labels"] = torch.arange(len(lengths)) % NUM_LABELS
    elif head == "ForQuestionAnswering":
        batch["start_positions"], batch["end_positions"] = mask.sum(1) // 2, mask.sum(1) - 1
    elif head == "ForMultipleChoice":
        batch = {name: x.view(-1, NUM_CHOICES, x.shape[1]) for name, x in batch.items()}
        batch["labels"] = torch.arange(len(lengths) // NUM_CHOICES) % NUM_CHOICES
    return batch


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass: the named outputs, and the gradient of each parameter (None: it has none)."""

    outputs: dict[str, Any]
    gradients: dict[str, Tensor | None]


def run_pass(model: nn.Module, batch: dict[str, Tensor], **options: Any) -> Pass:
    """The model's outputs, and the gradients of its loss; of a weighted sum over the live tokens where it has none."""
    model.zero_grad()
    outputs = model(**batch, output_hidden_states=True, **options)
    if "loss" in outputs:
        loss = outputs.loss
    else:
        last = outputs.last_hidden_state
        weights = torch.randn(last.shape, generator=torch.Generator().manual_seed(2)).to(last.dtype)
        loss = (last * weights * batch["attention_mask"].unsqueeze(-1)).sum()
    loss.backward()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return Pass(dict(outputs), gradients)


def assert_same(found: Pass, expected: Pass, live: Tensor | None) -> None:
    """Every output and gradient within BOUND of its size; outputs of tokens at live [B, N] alone where given."""
    assert found.outputs.keys() == expected.outputs.keys()
    for name, value in expected.outputs.items():
        got = found.outputs[name]
        pairs = zip(got, value, strict=True) if isinstance(value, tuple) else [(got, value)]
        for index, (ours, theirs) in enumerate(pairs):
            assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
            if live is not None and theirs.shape[:2] == live.shape:
                ours, theirs = ours[live], theirs[live]
            assert_close(ours, theirs, f"{name} {index}")
    assert found.gradients.keys() == expected.gradients.keys()
    for name, value in expected.gradients.items():
        got = found.gradients[name]
        assert (got is None) == (value is None), f"gradient of {name}"
        if value is not None:
            assert_close(got, value, f"gradient of {name}")


def assert_close(got: Tensor, expected: Tensor, name: str) -> None:
    bound = BOUND * max(1.0, float(expected.detach().abs().max()))
    error = largest_error(got, expected)
    assert error <= bound, f"{name}: {error:.3g} is more than {bound:.3g}"
