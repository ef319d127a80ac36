"""The bare encoders of `benchmarks.step`: ours, DeBERTaV3, BERT and ModernBERT of one width, forward and backward.

What: weights in the timed precision, random, no dropout, rows that are full; the gradient comes in at the last hidden
states. BERT and ModernBERT run transformers' SDPA and keep their own vocabularies where the recipe's is no smaller. At
width 768 and 12 layers they are BERT-base and ModernBERT-base; at other sizes ModernBERT has 22 layers for 12, and
feed-forward 1.5 times the width, as its base has. Ours and DeBERTaV3 have the same weights and are compared.
Used by: benchmarks/step.py. Tested by: tests/benchmarks/test_step.py.
"""

# B rows  N tokens of a row  D hidden width

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, DebertaV2Model, ModernBertConfig, ModernBertModel

from benchmarks.step_problem import PRECISIONS, SEED, StepProblem
from benchmarks.step_rivals import deberta_config
from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator

BERT_VOCABULARY, MODERNBERT_VOCABULARY = 30_522, 50_368
BASE_LAYERS, MODERNBERT_BASE_LAYERS = 12, 22


@dataclass(frozen=True, eq=False)
class EncoderRun:
    """A model and a function that gives its last hidden states [B, N, D]."""

    model: nn.Module
    forward: Callable[[], Tensor]
    grad_output: Tensor

    def run(self, step: int) -> None:
        """Forward and backward; `step` is not needed."""
        self.model.zero_grad(set_to_none=True)
        self.forward().backward(self.grad_output)

    def answer(self, last_layer: int) -> dict[str, Tensor]:
        """Hidden states, and gradients from the first layer to the last; for DeBERTa's names only."""
        self.model.zero_grad(set_to_none=True)
        states = self.forward()
        states.backward(self.grad_output)
        named = {name.removeprefix("deberta."): parameter for name, parameter in self.model.named_parameters()}
        wanted = ["encoder.rel_embeddings.weight", "embeddings.word_embeddings.weight"]
        for layer in sorted({0, last_layer}):
            wanted += [f"encoder.layer.{layer}.attention.self.{part}_proj.weight" for part in ("query", "value")]
        return {"hidden states": states.detach()} | {name: named[name].grad.clone() for name in wanted}


def build_encoder(name: str, problem: StepProblem, dtype: torch.dtype | None = None) -> EncoderRun:
    """One of ENCODERS on the ids of the problem's first micro-batch.

    Args:
        dtype: of the weights; the problem's precision where None.
    """
    batch, device = problem.batches[0], problem.device
    dtype = PRECISIONS[problem.precision] if dtype is None else dtype
    rows = batch.original_ids.view(-1, problem.config.data.sequence_length)
    sizes = problem.config.model.discriminator(problem.vocab_size)
    sizes = replace(sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    random = torch.Generator().manual_seed(SEED)
    grad_output = torch.randn(*rows.shape, sizes.hidden_size, generator=random)
    # rounded once, so that the exact answer is that of the same gradient
    grad_output = grad_output.to(PRECISIONS[problem.precision]).to(device, dtype)
    if name in ("ours", "deberta"):
        ours = Discriminator(sizes, "nes", problem.config.run.seed).to(PRECISIONS[problem.precision])
        if name == "ours":
            model, layout = ours.to(device, dtype), batch.layout()
            ids = batch.original_ids
            return EncoderRun(model, lambda: model.hidden_states(ids, layout)[-1].view(grad_output.shape), grad_output)
        reference = DebertaV2Model(deberta_config(sizes))
        reference.embeddings.word_embeddings.padding_idx = None
        reference.load_state_dict(ours.deberta.state_dict())
        return _plain(reference.to(device, dtype), rows, grad_output)
    torch.manual_seed(SEED)
    make = make_bert if name == "bert" else make_modernbert
    rival = make(sizes).to(device, dtype)
    return _plain(rival, rows % rival.config.vocab_size, grad_output)


def _plain(model: nn.Module, rows: Tensor, grad_output: Tensor) -> EncoderRun:
    mask = torch.ones_like(rows)
    return EncoderRun(model, lambda: model(input_ids=rows, attention_mask=mask).last_hidden_state, grad_output)


def make_bert(sizes: DebertaConfig) -> nn.Module:
    """BERT of these sizes, with SDPA."""
    config = BertConfig(
        vocab_size=min(BERT_VOCABULARY, sizes.vocab_size), hidden_size=sizes.hidden_size,
        num_hidden_layers=sizes.num_hidden_layers, num_attention_heads=sizes.num_attention_heads,
        intermediate_size=sizes.intermediate_size, max_position_embeddings=sizes.max_position_embeddings,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="sdpa",
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def make_modernbert(sizes: DebertaConfig) -> nn.Module:
    """ModernBERT of this width, with SDPA; all else is its base's."""
    vocab_size = min(MODERNBERT_VOCABULARY, sizes.vocab_size)
    config = ModernBertConfig(
        vocab_size=vocab_size, hidden_size=sizes.hidden_size, intermediate_size=3 * sizes.hidden_size // 2,
        num_hidden_layers=max(1, round(sizes.num_hidden_layers * MODERNBERT_BASE_LAYERS / BASE_LAYERS)),
        num_attention_heads=sizes.num_attention_heads, attn_implementation="sdpa", pad_token_id=0,
        bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    return ModernBertModel(config)


ENCODERS = {
    "ours": "ours",
    "deberta": "DeBERTaV3, transformers eager",
    "bert": "BERT, SDPA",
    "modernbert": "ModernBERT, SDPA",
}
