"""The discriminator: the encoder that is kept, trained to tell replaced tokens from original ones.

What: a DeBERTa of L layers with the RTD head. Its embeddings follow `embedding_sharing`: gdes (sg(E_G) + E_Delta),
es (E_G itself) or nes (its own), see model/embeddings.py and arXiv 2111.09543 section 3.
Used by: trainer/rtd_step.py, trainer/evaluate.py, model/hf_checkpoint.py. Tested by tests/model/.
"""

# T flat tokens  D hidden width

from dataclasses import dataclass

from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.generator import Trunk
from disentangled.model.initialize import initialize_weights
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise
from disentangled.model.rtd_head import ReplacedTokenHead, rtd_loss_sum

TABLE_OF_SHARING = {"gdes": "delta", "nes": "own", "es": "none"}


@dataclass(frozen=True)
class DiscriminatorOutput:
    """What one discriminator pass gives.

    Attributes:
        rtd_loss_sum: scalar, binary cross-entropy summed over live tokens, nats.
        logits: [T], positive where a token looks replaced.
        is_replaced: [T] bool, the truth.
    """

    rtd_loss_sum: Tensor
    logits: Tensor
    is_replaced: Tensor


class Discriminator(nn.Module):
    """DeBERTa trained by RTD; parameters {E_Delta, theta_D} for gdes."""

    def __init__(self, config: DebertaConfig, embedding_sharing: str = "gdes", seed: int = 0) -> None:
        super().__init__()
        if embedding_sharing not in TABLE_OF_SHARING:
            raise ValueError(
                f"model.embedding_sharing is {embedding_sharing!r}: choose one of {', '.join(TABLE_OF_SHARING)}"
            )
        self.config = config
        self.embedding_sharing = embedding_sharing
        self.deberta = Trunk(config, TABLE_OF_SHARING[embedding_sharing])
        self.mask_predictions = ReplacedTokenHead(config)
        initialize_weights(self, config.initializer_range, seed)

    def hidden_states(
        self, input_ids: Tensor, layout: TokenLayout, noise: Noise | None = None, shared_rows: Tensor | None = None
    ) -> list[Tensor]:
        """h[0] .. h[L], each [T, D]."""
        embeddings = self.deberta.embeddings(input_ids, layout, noise, shared_rows)
        return [states.stream for states in self.deberta.encoder(embeddings, layout, noise)]

    def forward(
        self,
        corrupted_ids: Tensor,
        original_ids: Tensor,
        layout: TokenLayout,
        noise: Noise | None,
        shared_rows: Tensor | None = None,
    ) -> DiscriminatorOutput:
        """Judge every token.

        Args:
            corrupted_ids, original_ids: [T] int64; a token is replaced where they differ.
            shared_rows: [T, D], E_G[corrupted_ids]: detached here for gdes, a leaf that wants a gradient for es,
                None for nes.
        """
        states = self.hidden_states(corrupted_ids, layout, noise, shared_rows)[-1]
        logits = self.mask_predictions(states, layout)
        is_replaced = corrupted_ids != original_ids
        return DiscriminatorOutput(rtd_loss_sum(logits, is_replaced, layout.live), logits, is_replaced)
