"""Token embeddings: the lookup, gradient-disentangled sharing, LayerNorm and padding mask.

What: the generator owns E_G. A discriminator's table depends on the way of sharing (arXiv 2111.09543 section 3):
- gdes: `word_embeddings_delta` holds E_Delta, zeros at first, and E_D[ids] = sg(E_G)[ids] + E_Delta[ids] by row lookup;
  the V x D sum is never built. The sum is taken in fp32: E_Delta is small beside E_G, a bf16 sum would lose it;
- nes: `word_embeddings` holds its own E_D;
- es: it has no table, the generator's rows are its embeddings.
Used by: model/generator.py, model/discriminator.py. Tested by tests/model/test_embedding_sharing.py.
Not here: absolute positions as input (no DeBERTaV2 or V3 size adds them); the mask decoder has its own.
"""

# T flat tokens  V vocabulary  D hidden width

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise, Site, drop_hidden


class Embeddings(nn.Module):
    """Embedding table, LayerNorm, dropout and padding mask; names are Hugging Face's.

    Args:
        table: "own" (E_G, or E_D of nes), "delta" (E_Delta of gdes) or "none" (es).
    """

    def __init__(self, config: DebertaConfig, table: str = "own") -> None:
        super().__init__()
        if config.position_biased_input:
            raise ValueError(
                "model.position_biased_input is true, but DeBERTaV2 and V3 see absolute positions in the mask decoder "
                "only: set it false"
            )
        self.probability = config.hidden_dropout_prob
        if table == "own":
            self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        elif table == "delta":
            self.word_embeddings_delta = nn.Embedding(config.vocab_size, config.hidden_size)
        self.table = table
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def look_up(self, input_ids: Tensor, shared_rows: Tensor | None) -> Tensor:
        """Rows [T, D] of the tokens before LayerNorm; fp32 at least where two tables are summed."""
        if self.table == "own":
            return self.word_embeddings(input_ids)
        if shared_rows is None:
            raise ValueError(f"embedding table {self.table!r} needs the generator's rows: pass shared_rows = E_G[ids]")
        if self.table == "none":
            return shared_rows
        own = self.word_embeddings_delta(input_ids)
        wide = torch.promote_types(own.dtype, torch.float32)
        return shared_rows.detach().to(wide) + own.to(wide)

    def forward(
        self, input_ids: Tensor, layout: TokenLayout, noise: Noise | None = None, shared_rows: Tensor | None = None
    ) -> Tensor:
        """Embeddings [T, D] of input_ids [T].

        Args:
            shared_rows: [T, D], the generator's rows for the same ids; gdes detaches them, es sends them a gradient.
        """
        rows = self.look_up(input_ids, shared_rows)
        norm = self.LayerNorm
        states = F.layer_norm(
            rows, norm.normalized_shape, norm.weight.to(rows.dtype), norm.bias.to(rows.dtype), norm.eps
        ).to(norm.weight.dtype)
        states = states * layout.live.unsqueeze(1)
        return drop_hidden(states, self.probability, noise, layout, 0, Site.EMBEDDING)
