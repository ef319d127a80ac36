"""The stack of layers with its shared relative embedding table.

What: Hugging Face's `DebertaV2Encoder` by names; one relative table [2k, D] for all layers, layer-normed
(norm_rel_ebd), projected anew in each layer.
Used by: model/discriminator.py, model/generator.py. Tested by tests/model/test_parity.py.
Not here: the generator's last layer, which the mask decoder runs itself (model/mask_decoder.py).
"""

# T flat tokens  D hidden width  R relative rows (2 * att_span)  L layers

import torch
from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.convolution import ConvLayer
from disentangled.model.layer import HiddenStates, Layer, hidden_states
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise
from disentangled.model.recompute import run_module


class Encoder(nn.Module):
    """L layers over one relative embedding table.

    Attributes:
        recompute: whether backward runs each layer again, which leaves only their inputs in memory.
    """

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.rel_embeddings = nn.Embedding(2 * config.att_span, config.hidden_size)
        self.LayerNorm = (
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps) if config.norm_rel_ebd == "layer_norm" else None
        )
        self.conv = ConvLayer(config) if config.conv_kernel_size else None
        self.recompute = False

    def get_rel_embeddings(self) -> Tensor:
        """The relative table [R, D] as the layers take it.

        Looked up row by row: ZeRO-3 gathers a weight around its own module's pass alone, and a generator of one layer
        has no other pass that would have it gathered in backward.
        """
        rows = torch.arange(self.rel_embeddings.num_embeddings, device=self.rel_embeddings.weight.device)
        table: Tensor = self.rel_embeddings(rows)
        return table if self.LayerNorm is None else self.LayerNorm(table)

    def forward(
        self, embeddings: Tensor, layout: TokenLayout, noise: Noise | None = None, num_layers: int | None = None
    ) -> list[HiddenStates]:
        """Hidden states h[0] .. h[num_layers], each [T, D]; h[0] is the embeddings, all layers where None."""
        rel_embeddings = self.get_rel_embeddings()
        all_states = [hidden_states(embeddings)]
        for index, layer in enumerate(self.layer[:num_layers]):
            states = run_module(layer, self.recompute, all_states[-1], rel_embeddings, layout, noise, index)
            if index == 0 and self.conv is not None:
                states = hidden_states(self.conv(embeddings, states.stream, layout, noise))
            all_states.append(states)
        return all_states
