"""The enhanced mask decoder (EMD): absolute positions enter where masked tokens are predicted.

What: the last layer is applied twice. Keys and values are h[-2] both times; the first query is h[-2] plus an absolute
position embedding, the second query is the first output (arXiv 2006.03654 section 3.2; the original code's
`emd_context_layer`). The layer's ordinary pass is not needed and not computed. Each token's query depends on no other
token's query, so everything but the keys and values runs on the M masked tokens alone; inside the attention the other
tokens query with zeros and what they get is dropped.
Used by: model/generator.py. Tested by tests/model/test_mask_decoder.py against the same decoder written over all
tokens.
"""

# T flat tokens  M masked tokens  D hidden width

from torch import Tensor, nn

from disentangled.model.attention import masked_rows_to_run
from disentangled.model.config import DebertaConfig
from disentangled.model.layer import HiddenStates, Layer, hidden_states
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise

NUM_PASSES = 2


class MaskDecoder(nn.Module):
    """Absolute position table [max_position_embeddings, D]; the layer that it drives belongs to the encoder."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(
        self,
        states: HiddenStates,
        layer: Layer,
        rel_embeddings: Tensor,
        layout: TokenLayout,
        masked_rows: Tensor,
        noise: Noise | None,
    ) -> Tensor:
        """Decode the masked tokens.

        Args:
            states: [T, D], h[-2]: the output of the last layer but one.
            layer: the encoder's last layer.
            masked_rows: [M] int64, flat indices of the masked tokens.

        Returns:
            [M, D] states for the MLM head.
        """
        if layout.max_seqlen > self.config.max_position_embeddings:
            raise ValueError(
                f"a document has {layout.max_seqlen} tokens but model.max_position_embeddings is "
                f"{self.config.max_position_embeddings}: the mask decoder needs a position for each; raise it"
            )
        attention = layer.attention.self
        keys, values = attention.project_keys(states.operand)
        absolute = self.position_embeddings(layout.position[masked_rows])
        queries = hidden_states(states.stream[masked_rows] + absolute)
        last = self.config.num_hidden_layers - 1
        for number in range(NUM_PASSES):
            key = last + number  # both passes are the same layer: each draws its own dropout
            positions = attention.project_positions(rel_embeddings, noise, key)
            spread = masked_rows_to_run(masked_rows, attention.query_proj(queries.operand), layout.num_tokens)
            context = attention.attend(spread, keys, values, positions, layout, noise, key)[masked_rows]
            queries = layer.finish(context, queries.stream, layout, noise, key, rows=masked_rows)
        return queries.stream
