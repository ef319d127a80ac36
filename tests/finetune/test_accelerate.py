"""`disentangled.accelerate` against transformers' own code: outputs of live tokens, losses, gradients; then undone.

In float64, so that the bound tells a wrong formula from rounding. Not here: what falls back (test_fallback.py),
dropout, precision, checkpointing and the like (test_accelerated_training.py), other libraries (test_wrappers.py).
"""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, DebertaConfig, DebertaModel
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DisentangledSelfAttention

import disentangled
from disentangled.finetune.fused_attention import FusedSelfAttention
from disentangled.finetune.fused_encoder import FusedEncoder, UnpaddedEncoder
from tests.finetune.small_models import assert_close, assert_same, run_pass, small_batch, small_model
from tests.numerics import assert_no_worse_than_eager

HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
ARCHITECTURES = {
    "own position keys": {"share_att_key": False},
    "c2p only": {"pos_att_type": ["c2p"]},
    "p2c only, own position keys": {"pos_att_type": ["p2c"], "share_att_key": False},
    "no position terms": {"pos_att_type": []},
    "relative attention off": {"relative_attention": False},
    "unnormalised relative table": {"norm_rel_ebd": "none"},
    "no buckets": {"position_buckets": -1, "max_relative_positions": -1},
    "absolute positions and types": {"position_biased_input": True, "type_vocab_size": 2},
    "convolution": {"conv_kernel_size": 3, "conv_act": "gelu"},
    "convolution of five taps in groups": {"conv_kernel_size": 5, "conv_groups": 4},
    "embeddings of another width": {"embedding_size": 24},
    "one layer": {"num_hidden_layers": 1},
}


@pytest.mark.parametrize("unpad", [True, False], ids=["live tokens", "all tokens"])
@pytest.mark.parametrize("head", HEADS)
def test_every_head_gives_the_same(head: str, unpad: bool) -> None:
    model, batch = small_model(head), small_batch(head)
    expected = run_pass(model, batch)
    found = run_pass(disentangled.accelerate(model, unpad=unpad), batch)
    mask = batch["attention_mask"].flatten(0, -2)
    assert_same(found, expected, mask.bool() if unpad and head != "ForQuestionAnswering" else None)


@pytest.mark.parametrize("unpad", [True, False], ids=["live tokens", "all tokens"])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_every_architecture_gives_the_same(changes: dict[str, object], unpad: bool) -> None:
    model, batch = small_model(**changes), small_batch()
    expected = run_pass(model, batch)
    found = run_pass(disentangled.accelerate(model, unpad=unpad), batch)
    assert_same(found, expected, batch["attention_mask"].bool() if unpad else None)


def test_old_language_modelling_head_gives_the_same() -> None:
    # untied: that head takes the embeddings as an argument, and transformers 4 would tie its dense layer to them too
    model = small_model("ForMaskedLM", legacy=False, tie_word_embeddings=False)
    batch = small_batch("ForMaskedLM")
    expected = run_pass(model, batch)
    assert_same(run_pass(disentangled.accelerate(model), batch), expected, batch["attention_mask"].bool())


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.float64, None])
def test_masks_of_any_kind_and_none(mask_dtype: torch.dtype | None) -> None:
    model, batch = small_model(), small_batch()
    ids, live = batch["input_ids"], batch["attention_mask"].bool()
    mask = None if mask_dtype is None else live.to(mask_dtype)
    expected = model(ids, attention_mask=mask).last_hidden_state
    found = disentangled.accelerate(model)(ids, attention_mask=mask).last_hidden_state
    live = torch.ones_like(live) if mask is None else live
    assert_close(found[live], expected[live], "last hidden state")


def test_padding_is_left_out_and_comes_back_as_zeros() -> None:
    model, batch = disentangled.accelerate(small_model()), small_batch()
    seen = []
    original = nn.Linear.forward

    def count(module: nn.Linear, states: torch.Tensor) -> torch.Tensor:
        seen.append(states.shape[:-1])
        return original(module, states)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Linear, "forward", count)
        states = model(**batch, output_hidden_states=True).hidden_states
    live = batch["attention_mask"].bool()
    table_rows = 2 * model.config.position_buckets
    assert set(seen) == {(1, int(live.sum())), (1, table_rows)}
    assert not any(h[~live].any() for h in states)


def test_float32_is_as_exact_as_transformers() -> None:
    head = "ForTokenClassification"
    batch = small_batch(head, (40, 31, 22, 9))
    exact, eager = run_pass(small_model(head), batch), run_pass(small_model(head, torch.float32), batch)
    found = run_pass(disentangled.accelerate(small_model(head, torch.float32)), batch)
    live = batch["attention_mask"].bool()
    logits = (each.outputs["logits"][live].detach() for each in (found, eager, exact))
    assert_no_worse_than_eager(*logits, "logits")
    for name in ("deberta.embeddings.word_embeddings.weight", "deberta.encoder.layer.0.attention.self.key_proj.weight"):
        assert_no_worse_than_eager(found.gradients[name], eager.gradients[name], exact.gradients[name], name)


def test_gradients_of_every_hidden_state_can_be_asked_for() -> None:
    model, batch = small_model(), small_batch()
    gradients = []
    for each in (model, disentangled.accelerate(copy.deepcopy(model))):
        outputs = each(**batch, output_hidden_states=True)
        loss = outputs.last_hidden_state[batch["attention_mask"].bool()].square().sum()
        gradients.append(torch.autograd.grad(loss, outputs.hidden_states))
    for index, (theirs, ours) in enumerate(zip(*gradients, strict=True)):
        assert_close(ours, theirs, f"gradient of hidden state {index}")


def test_results_as_tuples_are_transformers() -> None:
    model, batch = small_model(), small_batch()
    for keep_all in (False, True):
        options = {"return_dict": False, "output_hidden_states": keep_all}
        expected = disentangled.restore(model)(**batch, **options)
        found = disentangled.accelerate(model)(**batch, **options)
        assert [type(x) for x in found] == [type(x) for x in expected]
    encoded = model.encoder(torch.zeros(2, 5, 32).double(), torch.ones(2, 5), output_hidden_states=False)
    assert encoded.hidden_states is None


def test_restore_gives_transformers_back() -> None:
    model = disentangled.accelerate(small_model())
    assert isinstance(model.encoder, UnpaddedEncoder)
    assert disentangled.restore(model) is model
    types = {type(module) for module in model.modules()}
    assert DebertaV2Encoder in types and DisentangledSelfAttention in types
    assert not any(issubclass(each, FusedEncoder | FusedSelfAttention) for each in types)
    assert not set(vars(model.encoder)) - set(vars(small_model().encoder))


def test_accelerating_twice_takes_the_last_choice() -> None:
    model = disentangled.accelerate(disentangled.accelerate(small_model()), unpad=False)
    assert type(model.encoder) is FusedEncoder
    assert type(disentangled.accelerate(model).encoder) is UnpaddedEncoder


def test_checkpoint_is_transformers_own(tmp_path: Path) -> None:
    model, batch = small_model("ForSequenceClassification"), small_batch()
    model.save_pretrained(tmp_path / "theirs")
    disentangled.accelerate(model).save_pretrained(tmp_path / "ours")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours")
    assert_close(disentangled.accelerate(again.double())(**batch).logits, model(**batch).logits, "logits")


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_accelerated_and_their_own(copied) -> None:
    model, batch = disentangled.accelerate(small_model()), small_batch()
    other = copied(model)
    assert type(other.encoder) is UnpaddedEncoder
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.zero_()
    assert model(**batch).last_hidden_state.any()
    assert not other(**batch).last_hidden_state.any()


class TwoEncoders(nn.Module):
    """A wrapper that holds one model under another and an encoder without its model."""

    def __init__(self) -> None:
        super().__init__()
        self.tagger = small_model("ForTokenClassification")
        self.context = small_model().encoder


def test_encoders_inside_any_module_are_found() -> None:
    wrapper, batch = TwoEncoders(), small_batch("ForTokenClassification")
    expected = run_pass(wrapper.tagger, batch)
    states, mask = torch.randn(4, 19, 32, dtype=torch.float64), batch["attention_mask"]
    expected_context = wrapper.context(states, mask).last_hidden_state
    assert disentangled.accelerate(wrapper) is wrapper
    assert_same(run_pass(wrapper.tagger, batch), expected, mask.bool())
    context = wrapper.context(states, mask).last_hidden_state
    assert_close(context[mask.bool()], expected_context[mask.bool()], "context")


class OwnAttention(DisentangledSelfAttention):
    """Someone else's attention."""


class OwnEncoder(DebertaV2Encoder):
    """Someone else's encoder."""


def test_models_that_cannot_be_accelerated_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"DebertaModel has no DebertaV2Encoder .* DeBERTa v1"):
        disentangled.accelerate(DebertaModel(DebertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)))
    model = small_model()
    model.encoder.layer[1].attention.self.__class__ = OwnAttention
    with pytest.raises(ValueError, match=r"encoder has a OwnAttention, a class that is not transformers'"):
        disentangled.accelerate(model)
    model.encoder.layer[1].attention.self = nn.Identity()
    with pytest.raises(ValueError, match="encoder has 3 layers and 2 self-attentions"):
        disentangled.accelerate(model)
    model = small_model()
    model.encoder.__class__ = OwnEncoder
    with pytest.raises(ValueError, match="OwnEncoder"):
        disentangled.accelerate(model)
    model = small_model()
    model.encoder.layer[0].attention.self.forward = lambda *arguments, **options: None
    with pytest.raises(ValueError, match="forward of a DisentangledSelfAttention was replaced"):
        disentangled.accelerate(model)
    assert type(model.encoder) is DebertaV2Encoder, "a refused model stays as it was"


def test_a_forward_replaced_in_the_meantime_keeps_the_model_from_being_restored() -> None:
    model = disentangled.accelerate(small_model())
    model.encoder.forward = model.encoder.forward
    with pytest.raises(ValueError, match="forward of a UnpaddedEncoder was replaced"):
        disentangled.restore(model)
    del model.encoder.forward
    assert type(disentangled.restore(model).encoder) is DebertaV2Encoder
