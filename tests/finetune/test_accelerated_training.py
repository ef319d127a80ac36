"""Accelerated models in training: dropout, precision, gradient checkpointing, torch.compile.

Not here: gradients without dropout, which test_accelerate.py compares for every head.
"""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import disentangled
from disentangled.finetune import fused_attention
from disentangled.kernels.disentangled_attention import AttentionDropout
from tests.finetune.small_models import Pass, assert_close, assert_same, run_pass, small_batch, small_model
from tests.numerics import assert_no_worse_than_eager, root_mean_square

HEAD = "ForTokenClassification"


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_nothing_also_with_dropout(use_reentrant: bool) -> None:
    model = disentangled.accelerate(small_model(HEAD, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3))
    batch = small_batch(HEAD)
    model.train()
    torch.manual_seed(5)
    expected = run_pass(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    calls = []
    attention = model.deberta.encoder.layer[1].attention.self
    value = attention.value_proj.forward
    attention.value_proj.forward = lambda states: (calls.append(1), value(states))[1]
    torch.manual_seed(5)
    assert_same(run_pass(model, batch), expected, None)
    assert len(calls) == 2, "the layer runs again in backward"


def test_dropout_repeats_with_the_seed_and_is_off_in_evaluation() -> None:
    model = disentangled.accelerate(small_model(attention_probs_dropout_prob=0.5)).train()
    batch = small_batch()
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(model(**batch).last_hidden_state)
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    model.eval()
    assert torch.equal(model(**batch).last_hidden_state, model(**batch).last_hidden_state)


def test_no_two_layers_or_passes_share_their_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    attend = fused_attention.disentangled_attention

    def record(*tensors: Tensor, dropout: AttentionDropout, **keywords: Any) -> Tensor:
        drawn.append((dropout.layer, tuple(dropout.sample.tolist())))
        return attend(*tensors, dropout=dropout, **keywords)

    monkeypatch.setattr(fused_attention, "disentangled_attention", record)
    model = disentangled.accelerate(small_model(attention_probs_dropout_prob=0.5)).train()
    for _ in range(2):
        model(**small_batch())
    assert len(drawn) == len(set(drawn)) == 6
    assert all(len(set(samples)) == 4 for _, samples in drawn)


@pytest.mark.parametrize("unpad", [True, False], ids=["live tokens", "all tokens"])
def test_attention_dropout_has_transformers_statistics(unpad: bool) -> None:
    # one layer, so that what is compared is linear in the probabilities up to LayerNorm
    model = small_model(attention_probs_dropout_prob=0.4, num_hidden_layers=1).train()
    repeats = 1500
    batch = {name: x.repeat(repeats, 1) for name, x in small_batch(lengths=(7, 3)).items()}
    torch.manual_seed(0)

    def mean_and_spread() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            drawn = model(**batch).last_hidden_state.unflatten(0, (repeats, 2))
        chosen = batch["attention_mask"][:2].bool() | (not unpad)
        return drawn.mean(0)[chosen], drawn.std(0)[chosen]

    mean, spread = mean_and_spread()
    disentangled.accelerate(model, unpad=unpad)
    found_mean, found_spread = mean_and_spread()
    assert spread.min() > 0
    # the difference of two means of n draws has the standard error sqrt(2 / n) of one draw's deviation
    z = (found_mean - mean) / (spread * (2 / repeats) ** 0.5)
    assert 0.6 < root_mean_square(z) < 1.4, "unit variance where both draw from one distribution"
    assert abs(float((found_spread / spread).log().mean())) < 0.05


@pytest.mark.parametrize("unpad", [True, False], ids=["live tokens", "all tokens"])
def test_autocast_is_as_exact_as_transformers(unpad: bool) -> None:
    batch = small_batch(HEAD, (40, 31, 22, 9))
    exact, eager_model = run_pass(small_model(HEAD), batch), small_model(HEAD, torch.float32)
    model = disentangled.accelerate(copy.deepcopy(eager_model), unpad=unpad)
    with torch.autocast("cpu", torch.bfloat16):
        eager, found = run_pass(eager_model, batch), run_pass(model, batch)
    live = batch["attention_mask"].bool()
    logits = (each.outputs["logits"][live].detach() for each in (found, eager))
    assert_no_worse_than_eager(*logits, exact.outputs["logits"][live].detach(), "logits")
    for layer in range(3):
        name = f"deberta.encoder.layer.{layer}.attention.self.value_proj.weight"
        assert_no_worse_than_eager(found.gradients[name], eager.gradients[name], exact.gradients[name], name)


def test_bfloat16_is_as_exact_as_transformers() -> None:
    batch = small_batch(HEAD, (40, 31, 22, 9))
    exact, eager = run_pass(small_model(HEAD), batch), run_pass(small_model(HEAD, torch.bfloat16), batch)
    found = run_pass(disentangled.accelerate(small_model(HEAD, torch.bfloat16)), batch)
    live = batch["attention_mask"].bool()
    logits = (each.outputs["logits"][live].detach() for each in (found, eager, exact))
    assert_no_worse_than_eager(*logits, "logits")


@pytest.mark.slow
@pytest.mark.parametrize("unpad", [True, False], ids=["live tokens", "all tokens"])
def test_compiled_model_gives_the_same_with_few_variants(unpad: bool) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = disentangled.accelerate(small_model(HEAD), unpad=unpad)
    compiled = torch.compile(model, backend="aot_eager", dynamic=True)
    num_frames = []
    for lengths in [(19, 1, 7, 12), (9, 8, 4, 3), (30, 2, 2, 5), (21, 21, 3, 1), (25, 14, 13, 12)]:
        batch = small_batch(HEAD, lengths)
        expected = run_pass(model, batch)
        # the compiled model's parameters have its prefix
        gradients = {f"_orig_mod.{name}": gradient for name, gradient in expected.gradients.items()}
        live = batch["attention_mask"].bool() if unpad else None
        assert_same(run_pass(compiled, batch), Pass(expected.outputs, gradients), live)
        num_frames.append(torch._dynamo.utils.counters["frames"]["total"])
    assert num_frames[0] > 0 and num_frames[1] == num_frames[-1] < 40, num_frames


@pytest.mark.slow
def test_all_tokens_are_one_graph_where_attention_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernels in Triton's interpreter, as a GPU has them; dropout is drawn inside the graph."""
    pytest.importorskip("triton")
    torch.compiler.reset()
    monkeypatch.setattr(fused_attention, "choose_implementation", lambda *arguments: "triton")
    attend = functools.partial(fused_attention.disentangled_attention, implementation="triton")
    monkeypatch.setattr(fused_attention, "disentangled_attention", attend)
    changes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "attention_probs_dropout_prob": 0.2}
    model = disentangled.accelerate(small_model(HEAD, torch.float32, **changes), unpad=False).train()
    batch = small_batch(HEAD, (5, 3))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    passes = []
    for each in (model, compiled):
        torch.manual_seed(5)
        passes.append(run_pass(each, batch))
    eager, graph = passes
    assert torch.equal(graph.outputs["logits"], eager.outputs["logits"])
    for name, gradient in eager.gradients.items():
        assert_close(graph.gradients[f"_orig_mod.{name}"], gradient, name)
    assert not torch.equal(eager.outputs["logits"], model.eval()(**batch).logits), "dropout was on"


def test_training_goes_on_after_restoring() -> None:
    model, batch = small_model(HEAD), small_batch(HEAD)
    expected = run_pass(model, batch)
    run_pass(disentangled.accelerate(model), batch)
    found = run_pass(disentangled.restore(model), batch)
    assert_close(found.outputs["loss"], expected.outputs["loss"], "loss")
    assert torch.equal(found.outputs["logits"], expected.outputs["logits"])
