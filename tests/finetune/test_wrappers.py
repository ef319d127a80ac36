"""Accelerated encoders inside what other libraries put around them: adapters, peft, sentence-transformers, taggers.

The libraries' own classes are tested where they are installed; an adapter of the same shape as peft's is here, so that
the suite always has one. Not here: plain transformers models (test_accelerate.py).
"""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import disentangled
from tests.finetune.small_models import assert_close, assert_same, run_pass, small_batch, small_model
from tests.model.tiny_models import scramble

HEAD = "ForSequenceClassification"


class LowRankAdapter(nn.Module):
    """A frozen linear layer and a trained update of low rank beside it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, 2, bias=False, dtype=base.weight.dtype)
        self.up = nn.Linear(2, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, states: Tensor) -> Tensor:
        rows, tokens, _ = states.shape  # as some adapters do
        return self.base(states) + self.up(self.down(states)).view(rows, tokens, -1)


@pytest.mark.parametrize("share_att_key", [True, False])
def test_adapters_around_projections_give_the_same(share_att_key: bool) -> None:
    model, batch = small_model(HEAD, share_att_key=share_att_key), small_batch(HEAD)
    for layer in model.deberta.encoder.layer:
        attention = layer.attention.self
        for name, module in list(attention.named_children()):
            if isinstance(module, nn.Linear):
                setattr(attention, name, LowRankAdapter(module))
    scramble(model, seed=3).double()
    expected = run_pass(model, batch)
    assert expected.gradients["deberta.encoder.layer.0.attention.self.query_proj.down.weight"].any()
    assert expected.gradients["deberta.encoder.layer.0.attention.self.query_proj.base.weight"] is None
    found = run_pass(disentangled.accelerate(model), batch)
    assert_same(found, expected, batch["attention_mask"].bool())


@pytest.mark.parametrize("accelerated_first", [True, False])
def test_peft_model_gives_the_same(accelerated_first: bool) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=2, target_modules=["query_proj", "value_proj", "dense"], lora_dropout=0.0)
    model, batch = small_model(HEAD), small_batch(HEAD)
    if accelerated_first:
        disentangled.accelerate(model)
    adapted = scramble(peft.get_peft_model(model, config), seed=3).double()
    expected = run_pass(disentangled.restore(adapted), batch)
    assert any("lora" in name and gradient is not None for name, gradient in expected.gradients.items())
    found = run_pass(disentangled.accelerate(adapted), batch)
    assert_same(found, expected, batch["attention_mask"].bool())


def test_cross_encoder_gives_the_same(tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed"
    )
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnop"])}
    plain = Tokenizer(models.WordLevel(words, "[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk")}
    PreTrainedTokenizerFast(tokenizer_object=plain, **special).save_pretrained(tmp_path)
    small_model(HEAD, torch.float32, num_labels=1).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [f"DebertaV2{HEAD}"]
    encoder = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    pairs = [("a b c", "d e f g h i j k"), ("a", "b"), ("c d e f g", "p o n")]
    expected = torch.as_tensor(encoder.predict(pairs)).double()
    assert expected.unique().numel() == len(pairs)
    disentangled.accelerate(encoder)
    found = torch.as_tensor(encoder.predict(pairs)).double()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


class SpanTagger(nn.Module):
    """As GLiNER: an encoder, the first token of each word taken out of its states, a recurrent layer over the words."""

    def __init__(self) -> None:
        super().__init__()
        self.token_rep_layer = nn.ModuleDict({"bert_layer": small_model()})
        self.rnn = nn.LSTM(32, 8, batch_first=True, bidirectional=True, dtype=torch.float64)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, words: Tensor) -> Tensor:
        states = self.token_rep_layer["bert_layer"](input_ids, attention_mask).last_hidden_state
        taken = states.gather(1, (words - 1).clamp(min=0)[..., None].expand(-1, -1, 32))
        lengths = (words > 0).sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(taken, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


def test_tagger_over_words_gives_the_same() -> None:
    torch.manual_seed(0)
    tagger, batch = SpanTagger(), small_batch()
    # words of two tokens, numbered by their first token from 1; 0 where a row has no more words
    firsts = torch.arange(1, 20, 2).expand(4, -1)
    words = firsts * (firsts <= batch["attention_mask"].sum(1, keepdim=True))
    expected = tagger(**batch, words=words)
    found = disentangled.accelerate(tagger)(**batch, words=words)
    assert_close(found, expected, "words")
