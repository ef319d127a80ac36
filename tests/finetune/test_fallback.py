"""Calls that the fused op, or leaving padding out, cannot serve: transformers' answer, and one warning with why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import disentangled
from disentangled.finetune.fused_encoder import TO_ALL_TOKENS, TO_TRANSFORMERS
from tests.finetune.small_models import assert_close, small_batch, small_model

IDS = small_batch()["input_ids"]
LEFT_PADDED = small_batch()["attention_mask"].flip(1)
HOLES = torch.where(torch.arange(19) % 5 == 3, 0, small_batch()["attention_mask"])
EMPTY_ROW = small_batch()["attention_mask"] * torch.tensor([1, 0, 1, 1])[:, None]


def assert_said(caplog: pytest.LogCaptureFixture, *parts: str) -> None:
    """One warning, which has all of these parts."""
    assert len(caplog.messages) == 1, caplog.messages
    assert all(part in caplog.messages[0] for part in parts), caplog.messages


@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_output_attentions_are_transformers_own(head: str, warnings_said: pytest.LogCaptureFixture) -> None:
    model, batch = small_model(head), small_batch(head)
    expected = model(**batch, output_attentions=True)
    disentangled.accelerate(model)
    for _ in range(2):
        found = model(**batch, output_attentions=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found.attentions, expected.attentions, strict=True))
    assert torch.equal(found[0], expected[0])
    assert_said(warnings_said, "output_attentions", TO_TRANSFORMERS)


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (LEFT_PADDED, "a row has padding before a live token"),
        (HOLES, "a row has padding before a live token"),
        (EMPTY_ROW, "a row has no live token"),
    ],
    ids=["left padding", "holes", "empty row"],
)
def test_masks_that_are_no_prefixes_give_the_same_at_every_token(
    mask: Tensor, reason: str, warnings_said: pytest.LogCaptureFixture
) -> None:
    model = small_model()
    expected = model(IDS, attention_mask=mask).last_hidden_state
    disentangled.accelerate(model)
    for _ in range(2):
        assert_close(model(IDS, attention_mask=mask).last_hidden_state, expected, "last hidden state")
    assert_said(warnings_said, reason, TO_ALL_TOKENS)


@pytest.mark.parametrize(
    "register",
    [
        lambda module, hook: module.register_forward_hook(lambda m, inputs, output: hook(output)),
        lambda module, hook: module.register_forward_pre_hook(lambda m, inputs: hook(inputs[0])),
    ],
    ids=["forward", "before forward"],
)
def test_hooks_inside_layers_see_what_they_saw(
    register: Callable[..., Any], warnings_said: pytest.LogCaptureFixture
) -> None:
    model, batch = small_model(), small_batch()
    seen: list[Tensor] = []
    handle = register(model.encoder.layer[1].intermediate, seen.append)
    model(**batch)
    disentangled.accelerate(model)
    model(**batch)
    theirs, ours = seen
    assert_close(ours, theirs, "what the hook saw")
    assert_said(warnings_said, "a hook on layer.1.intermediate", TO_ALL_TOKENS)
    handle.remove()
    assert not model(**batch).last_hidden_state[~batch["attention_mask"].bool()].any(), "without it padding is left out"


def test_backward_hooks_see_the_batch() -> None:
    model, batch = disentangled.accelerate(small_model()), small_batch()
    shapes = []
    model.encoder.layer[0].register_full_backward_hook(lambda module, inputs, outputs: shapes.append(outputs[0].shape))
    model(**batch).last_hidden_state.sum().backward()
    assert shapes == [(*IDS.shape, 32)]


def test_hooks_on_the_encoder_itself_are_no_obstacle(warnings_said: pytest.LogCaptureFixture) -> None:
    model, batch = disentangled.accelerate(small_model()), small_batch()
    shapes = []
    model.encoder.register_forward_hook(lambda module, inputs, output: shapes.append(output[0].shape))
    model(**batch)
    assert shapes == [(*IDS.shape, 32)] and not warnings_said.messages


def test_question_answering_reads_padding_and_says_so(warnings_said: pytest.LogCaptureFixture) -> None:
    head = "ForQuestionAnswering"
    model, batch = small_model(head), small_batch(head)
    expected = model(**batch)
    disentangled.accelerate(model)
    found = model(**batch)
    assert_close(found.start_logits, expected.start_logits, "start logits, padding too")
    assert_said(warnings_said, "question answering", TO_ALL_TOKENS)


def test_query_states_and_relative_positions_are_transformers_own(warnings_said: pytest.LogCaptureFixture) -> None:
    encoder = small_model().encoder
    states, mask = torch.randn(2, 6, 32, dtype=torch.float64), torch.ones(2, 6)
    positions = torch.arange(6).view(1, 6, 1) - torch.arange(6).view(1, 1, 6)
    calls: list[dict[str, Tensor]] = [{"relative_pos": 2 * positions}, {"query_states": states.flip(1)}]
    expected = [encoder(states, mask, **call).last_hidden_state for call in calls]
    accelerated = disentangled.accelerate(nn.ModuleList([encoder]))[0]
    found = [accelerated(states, mask, **call).last_hidden_state for call in calls]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    for reason, message in zip(("relative_pos", "query_states"), warnings_said.messages, strict=True):
        assert reason in message and TO_TRANSFORMERS in message


def test_masks_of_pairs_are_transformers_own(warnings_said: pytest.LogCaptureFixture) -> None:
    encoder = small_model().encoder
    states = torch.randn(2, 6, 32, dtype=torch.float64)
    causal = torch.ones(6, 6).tril().expand(2, 6, 6)
    expected = encoder(states, causal).last_hidden_state
    accelerated = disentangled.accelerate(nn.ModuleList([encoder]))[0]
    assert torch.equal(accelerated(states, causal).last_hidden_state, expected)
    assert_said(warnings_said, "the attention mask is not [B, N]", TO_TRANSFORMERS)


def test_layers_called_alone_are_transformers_own() -> None:
    encoder = small_model().encoder
    states, mask = torch.randn(2, 6, 32, dtype=torch.float64), torch.ones(2, 1, 6, 6)
    table = encoder.get_rel_embedding()
    expected = encoder.layer[0](states, mask, rel_embeddings=table)[0]
    disentangled.accelerate(nn.ModuleList([encoder]))
    assert torch.equal(encoder.layer[0](states, mask, rel_embeddings=table)[0], expected)


def test_exported_programs_are_transformers_own(warnings_said: pytest.LogCaptureFixture) -> None:
    model, batch = small_model().eval().requires_grad_(False), small_batch()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    expected = model(ids, mask).last_hidden_state
    disentangled.accelerate(model)
    traced = torch.jit.trace(lambda ids, mask: model(ids, mask).last_hidden_state, (ids, mask), check_trace=False)
    assert_close(traced(ids, mask), expected, "traced, padding too")
    assert_said(warnings_said, "traced or exported", TO_TRANSFORMERS)


def test_models_without_memory_still_know_their_shapes() -> None:
    model = disentangled.accelerate(small_model()).to("meta")
    ids = IDS.to("meta")
    assert model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state.shape == (*IDS.shape, 32)


def test_nothing_is_said_where_nothing_falls_back(warnings_said: pytest.LogCaptureFixture) -> None:
    for head in ("Model", "ForTokenClassification"):
        disentangled.accelerate(small_model(head))(**small_batch(head))
    disentangled.accelerate(small_model(), unpad=False)(IDS, attention_mask=LEFT_PADDED)
    assert not warnings_said.messages
