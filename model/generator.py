"""The generator: a shallow DeBERTa with the enhanced mask decoder, trained by masked language modelling.

What: embeddings E_G, an encoder of L_G layers whose last layer is run by the mask decoder, the MLM head tied to E_G.
One forward pass gives the loss and, from the same logits, the replacements that the discriminator is trained on
(arXiv 2111.09543 section 3.1).
Used by: trainer/rtd_step.py, trainer/evaluate.py, model/hf_checkpoint.py. Tested by tests/model/.
"""

# T flat tokens  M masked tokens  D hidden width  V vocabulary

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, MaskedLmLoss
from disentangled.model.config import DebertaConfig
from disentangled.model.embeddings import Embeddings
from disentangled.model.encoder import Encoder
from disentangled.model.initialize import initialize_weights
from disentangled.model.layout import TokenLayout
from disentangled.model.mask_decoder import MaskDecoder
from disentangled.model.mlm_head import MaskedLanguageHead
from disentangled.model.noise import Noise
from disentangled.model.recompute import run_module


@dataclass(frozen=True)
class Sampling:
    """How replacements are drawn: the key of their random numbers and the ids that are never drawn.

    Attributes:
        banned: [V] bool, True for special ids and for the vocabulary's padding rows.
    """

    seed: int
    stream: Stream
    banned: Tensor
    temperature: float = 1.0


@dataclass(frozen=True)
class GeneratorOutput:
    """What one generator pass gives; all on the device.

    Attributes:
        mlm_loss_sum: scalar, cross-entropy summed over the masked tokens, nats.
        num_correct: scalar, masked tokens whose likeliest id is the right one.
        num_sampled_correct: scalar, masked tokens whose drawn id is the right one.
        corrupted_ids: [T] int64, the input with drawn ids at the masked tokens.
        shared_rows: [T, D], E_G[corrupted_ids] attached to the graph; only where asked for (ES).
    """

    mlm_loss_sum: Tensor
    num_correct: Tensor
    num_sampled_correct: Tensor
    corrupted_ids: Tensor
    shared_rows: Tensor | None


class Trunk(nn.Module):
    """Embeddings and encoder: what Hugging Face calls `deberta`."""

    def __init__(self, config: DebertaConfig, table: str = "own") -> None:
        super().__init__()
        self.embeddings = Embeddings(config, table)
        self.encoder = Encoder(config)


class Generator(nn.Module):
    """DeBERTa trained by MLM; parameters {E_G, theta_G}."""

    def __init__(self, config: DebertaConfig, mask_id: int, seed: int = 0) -> None:
        super().__init__()
        if config.num_hidden_layers == 1 and config.conv_kernel_size:
            raise ValueError(
                "model.generator_num_hidden_layers is 1 with a convolution, which follows the first layer's ordinary "
                "pass and would never be trained: give the generator at least 2 layers"
            )
        self.config = config
        self.mask_id = mask_id
        self.deberta = Trunk(config)
        self.mask_decoder = MaskDecoder(config)
        self.lm_predictions = nn.ModuleDict({"lm_head": MaskedLanguageHead(config)})
        initialize_weights(self, config.initializer_range, seed)

    @property
    def word_embeddings(self) -> Tensor:
        """E_G [V, D]."""
        return self.deberta.embeddings.word_embeddings.weight

    def masked_logits(
        self, input_ids: Tensor, layout: TokenLayout, masked_rows: Tensor, noise: Noise | None = None
    ) -> Tensor:
        """Logits [M, V] at the flat tokens `masked_rows` [M] of input_ids [T] (which already hold [MASK])."""
        states = self._masked_states(input_ids, layout, masked_rows, noise)
        head = self.lm_predictions["lm_head"]
        assert isinstance(head, MaskedLanguageHead)
        return head.logits(states, self.word_embeddings)

    def _masked_states(
        self, input_ids: Tensor, layout: TokenLayout, masked_rows: Tensor, noise: Noise | None
    ) -> Tensor:
        """What the mask decoder gives, [M, D]."""
        embeddings = self.deberta.embeddings(input_ids, layout, noise)
        encoder = self.deberta.encoder
        states = encoder(embeddings, layout, noise, num_layers=len(encoder.layer) - 1)[-1]
        decoded: Tensor = run_module(
            self.mask_decoder, encoder.recompute,
            states, encoder.layer[-1], encoder.get_rel_embeddings(), layout, masked_rows, noise,
        )  # fmt: skip
        return decoded

    def forward(
        self,
        original_ids: Tensor,
        layout: TokenLayout,
        masked_rows: Tensor,
        noise: Noise | None,
        sampling: Sampling,
        needs_shared_rows: bool = False,
        masked_ids: Tensor | None = None,
    ) -> GeneratorOutput:
        """Mask, predict, sample.

        Args:
            original_ids: [T] int64, the text.
            masked_rows: [M] int64, flat indices of the tokens to mask; M may be 0.
            noise: dropout, None in evaluation.
            needs_shared_rows: also look the corrupted ids up in E_G inside this pass, so that a later backward
                reaches E_G (ES).
            masked_ids: [M] int64, what the generator sees at the masked tokens; [MASK] where None.
        """
        labels = original_ids[masked_rows]
        if masked_ids is None:
            input_ids = original_ids.index_fill(0, masked_rows, self.mask_id)
        else:
            input_ids = original_ids.index_copy(0, masked_rows, masked_ids)
        states = self._masked_states(input_ids, layout, masked_rows, noise)
        draw = Draw(
            seed=sampling.seed,
            stream=sampling.stream,
            sample=layout.sample[masked_rows],
            token=layout.token[masked_rows],
            banned=sampling.banned,
            temperature=sampling.temperature,
        )
        made: MaskedLmLoss = self.lm_predictions["lm_head"](states, self.word_embeddings, labels, draw)
        corrupted_ids = original_ids.index_copy(0, masked_rows, made.drawn)
        return GeneratorOutput(
            mlm_loss_sum=made.loss_sum,
            num_correct=made.is_correct.sum(),
            num_sampled_correct=(made.drawn == labels).sum(),
            corrupted_ids=corrupted_ids,
            shared_rows=self.deberta.embeddings.word_embeddings(corrupted_ids) if needs_shared_rows else None,
        )


def banned_ids(vocab_size: int, num_pieces: int, special_ids: tuple[int, ...], device: torch.device) -> Tensor:
    """[V] bool: special ids and the rows past the last piece, which no text ever holds."""
    banned = torch.arange(vocab_size, device=device) >= num_pieces
    banned[list(special_ids)] = True
    return banned
