"""The RTD steps that ours is held against: two transformers DebertaV2 models with GDES by hand.

What: written as well as a user of today would. Logits at masked tokens only, rows of E_G and E_Delta looked up and
added, the mask decoder through transformers' own layer, no ordinary pass of the generator's last layer, autocast, fused
AdamW, gradients set to None. Parameters have the names that ours have, so both load the same weights.
`original` is microsoft/DeBERTa's arithmetic instead: E_G + E_Delta over the whole vocabulary before every pass of the
discriminator, the ordinary pass of the generator's last layer too, float32 logits of the masked tokens kept through the
step, AdamW a tensor at a time. Its attention is transformers', which in half precision takes scores in half precision,
the original in float32.
Used by: benchmarks/step_variants.py. Tested by: tests/benchmarks/test_step.py.
"""

# B rows  N tokens of a row  T = B * N  M masked tokens  D hidden width  V vocabulary

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from benchmarks.step_breakdown import PartClock
from benchmarks.step_problem import StepProblem
from disentangled.model.config import DebertaConfig
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.optim import decays

DELTA = "deberta.embeddings.word_embeddings_delta.weight"


def deberta_config(config: DebertaConfig) -> DebertaV2Config:
    """The same architecture in transformers' words."""
    known = {entry.name: getattr(config, entry.name) for entry in fields(DebertaConfig)}
    known |= {"pos_att_type": list(config.pos_att_type)}
    return DebertaV2Config(**known, relative_attention=True, type_vocab_size=0, legacy=False)


class RivalGenerator(nn.Module):
    """Encoder, mask decoder and tied head; the decoder's layer stands apart, so the encoder never runs it."""

    def __init__(self, config: DebertaConfig, original: bool) -> None:
        super().__init__()
        self.deberta = DebertaV2Model(deberta_config(config))
        layers = self.deberta.encoder.layer
        self.decoder_layer = layers[-1]
        if not original:
            self.deberta.encoder.layer = layers[:-1]
        self.mask_decoder = nn.ModuleDict(
            {"position_embeddings": nn.Embedding(config.max_position_embeddings, config.hidden_size)}
        )
        head = {
            "dense": nn.Linear(config.hidden_size, config.hidden_size),
            "LayerNorm": nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
        }
        self.lm_predictions = nn.ModuleDict({"lm_head": nn.ModuleDict(head)})
        self.lm_predictions["lm_head"].bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.last = config.num_hidden_layers - 1
        self.original = original

    def load(self, weights: dict[str, Tensor]) -> None:
        """Weights by our generator's names."""
        apart, own = f"deberta.encoder.layer.{self.last}.", dict(weights)
        for name in weights:
            if name.startswith(apart):
                own["decoder_layer." + name.removeprefix(apart)] = own[name] if self.original else own.pop(name)
        self.load_state_dict(own)

    def named_weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by our generator's names."""
        for name, parameter in self.named_parameters():
            yield name.replace("decoder_layer.", f"deberta.encoder.layer.{self.last}."), parameter

    def forward(self, input_ids: Tensor, mask: Tensor, masked_rows: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids, mask [B, N], masked_rows and labels [M] -> losses [M] and logits [M, V]."""
        encoder, embeddings = self.deberta.encoder, self.deberta.embeddings
        if len(encoder.layer):
            states = self.deberta(input_ids, mask, output_hidden_states=self.original)
            keys = states.hidden_states[-2] if self.original else states.last_hidden_state
        else:
            keys = embeddings(input_ids, mask=mask)
        places = self.mask_decoder["position_embeddings"].weight[: input_ids.shape[1]]
        queries = keys + places
        around = {
            "attention_mask": encoder.get_attention_mask(mask),
            "relative_pos": encoder.get_rel_pos(keys),
            "rel_embeddings": encoder.get_rel_embedding(),
        }
        for _ in range(2):
            queries = self.decoder_layer(keys, query_states=queries, **around)[0]
        head = self.lm_predictions["lm_head"]
        states = head["LayerNorm"](F.gelu(head["dense"](queries.flatten(0, 1)[masked_rows])))
        logits = F.linear(states, embeddings.word_embeddings.weight, head.bias)
        return F.cross_entropy(logits.float(), labels, reduction="none"), logits


class RivalDiscriminator(nn.Module):
    """Encoder over embeddings that come in, and the RTD head."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.deberta = DebertaV2Model(deberta_config(config))
        embeddings = self.deberta.embeddings
        embeddings.word_embeddings_delta = embeddings.word_embeddings
        del embeddings.word_embeddings
        embeddings.word_embeddings_delta.padding_idx = None  # ours trains [PAD]'s row too, where it is seen
        self.mask_predictions = nn.ModuleDict(
            {
                "LayerNorm": nn.LayerNorm(config.hidden_size, config.layer_norm_eps),
                "dense": nn.Linear(config.hidden_size, config.hidden_size),
                "classifier": nn.Linear(config.hidden_size, 1),
            }
        )

    def forward(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """embeddings [B, N, D], mask [B, N] -> logits [B, N]."""
        states = self.deberta(inputs_embeds=embeddings, attention_mask=mask).last_hidden_state
        head = self.mask_predictions
        states = head["LayerNorm"](states + states[:, :1])
        logits: Tensor = head["classifier"](F.gelu(head["dense"](states))).squeeze(-1)
        return logits.float()


@dataclass(frozen=True)
class Way:
    """How a rival's step is run."""

    compiled: bool = False
    original: bool = False
    flash: bool = False


class RivalStep:
    """A user's training step over the problem's batches, which must be rows of one document each."""

    def __init__(self, problem: StepProblem, weights: dict[str, dict[str, Tensor]], way: Way) -> None:
        model, optimizer = problem.config.model, problem.config.optimizer
        self.problem, self.way, self.clock = problem, way, PartClock(problem.device)
        with torch.device(problem.device):
            self.generator = RivalGenerator(model.generator(problem.vocab_size), way.original)
            self.discriminator = RivalDiscriminator(model.discriminator(problem.vocab_size))
        self.generator.load(weights["generator"])
        self.discriminator.load_state_dict(weights["discriminator"])
        if way.flash:
            from disentangled_flash import optimize_deberta_training

            for rival in (self.generator, self.discriminator):
                optimize_deberta_training(rival.deberta, backend="triton")
        self.optimizers = []
        for rival in (self.generator, self.discriminator):
            rival.train()
            named = list(rival.named_parameters())
            groups = [
                {"params": [p for n, p in named if decays(n)], "weight_decay": optimizer.weight_decay},
                {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
            ]
            self.optimizers.append(
                torch.optim.AdamW(
                    groups, lr=optimizer.learning_rate * 1e-3, betas=(optimizer.beta1, optimizer.beta2),
                    eps=optimizer.epsilon, fused=not way.original, foreach=False,
                )
            )  # fmt: skip
            if way.compiled:
                rival.compile(dynamic=False)  # one graph for each shape, the fastest

    def run(self, step: int) -> None:
        """Update both models once; `step` is not needed."""
        config, problem = self.problem.config, self.problem
        corrupted, kept = [], []
        for batch in problem.batches:
            with self.clock.part("generator"):
                losses, logits = self.predict(batch)
            with self.clock.part("sampling"), torch.no_grad():
                drawn = torch.multinomial(logits.float().softmax(-1), 1).squeeze(1)
                corrupted.append(batch.original_ids.index_copy(0, batch.masked_rows, drawn))
            with self.clock.part("generator"):
                (losses.sum() / problem.counts.num_masked).backward()
            if self.way.original:
                kept.append(logits.detach().float())
        self._update(self.generator, self.optimizers[0])
        for batch, ids in zip(problem.batches, corrupted, strict=True):
            with self.clock.part("discriminator"):
                loss = self.judge(batch, ids)[1] * (config.optimizer.rtd_lambda / problem.counts.num_live)
                loss.backward()
        self._update(self.discriminator, self.optimizers[1])

    def predict(self, batch: MaskedBatch) -> tuple[Tensor, Tensor]:
        """The generator's losses [M] and logits [M, V]."""
        shown = batch.original_ids.index_copy(0, batch.masked_rows, batch.masked_ids)
        rows = shown.view(-1, self.problem.config.data.sequence_length)
        with self.problem.autocast():
            losses, logits = self.generator(
                rows, torch.ones_like(rows), batch.masked_rows, batch.original_ids[batch.masked_rows]
            )
        return losses, logits

    def judge(self, batch: MaskedBatch, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The discriminator's logits [T] of ids [T] and the sum of its losses."""
        rows = ids.view(-1, self.problem.config.data.sequence_length)
        shared = self.generator.deberta.embeddings.word_embeddings.weight.detach()
        delta = self.discriminator.deberta.embeddings.word_embeddings_delta
        if self.way.original:
            embeddings = F.embedding(rows, shared + delta.weight)
        else:
            embeddings = F.embedding(rows, shared) + delta(rows)
        with self.problem.autocast():
            logits = self.discriminator(embeddings, torch.ones_like(rows)).view(-1)
        is_replaced = (ids != batch.original_ids).to(logits.dtype)
        return logits, F.binary_cross_entropy_with_logits(logits, is_replaced, reduction="sum")

    @contextlib.contextmanager
    def without_dropout(self) -> Iterator[None]:
        """Both models as they are compared."""
        self.generator.eval(), self.discriminator.eval()
        yield
        self.generator.train(), self.discriminator.train()

    def _update(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        with self.clock.part("optimizer"):
            limit = self.problem.config.optimizer.gradient_clipping
            nn.utils.clip_grad_norm_(model.parameters(), limit or float("inf"), foreach=not self.way.original)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
