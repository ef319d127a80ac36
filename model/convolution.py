"""DeBERTaV2's convolution beside the first layer (xlarge and xxlarge only; not in the paper of V3).

What: Conv1d over the embeddings, activation, added to the first layer's output, LayerNorm, padding zeroed. It never
reaches across a document's border: there it sees zeros, as at the end of a padded row.
Used by: model/encoder.py. Tested by tests/model/test_parity.py and test_packed.py.
"""

# T flat tokens  D hidden width  W taps

import torch
from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.layer import activate
from disentangled.model.layout import TokenLayout
from disentangled.model.noise import Noise, Site, drop_hidden


class ConvLayer(nn.Module):
    """Names and arithmetic of Hugging Face's `ConvLayer`, for any layout."""

    def __init__(self, config: DebertaConfig) -> None:
        super().__init__()
        self.config = config
        width, taps = config.hidden_size, config.conv_kernel_size
        self.conv = nn.Conv1d(width, width, taps, padding=(taps - 1) // 2, groups=config.conv_groups)
        self.LayerNorm = nn.LayerNorm(width, config.layer_norm_eps)

    def forward(self, embeddings: Tensor, states: Tensor, layout: TokenLayout, noise: Noise | None) -> Tensor:
        """Embeddings [T, D], zeros at padding, and the first layer's output [T, D] -> [T, D], zeros at padding."""
        config = self.config
        gapped, place = _with_gaps(embeddings, layout, (config.conv_kernel_size - 1) // 2)
        convolved = self.conv(gapped.t().unsqueeze(0)).squeeze(0).t().index_select(0, place)
        convolved = drop_hidden(convolved, config.hidden_dropout_prob, noise, layout, 0, Site.CONVOLUTION)
        return self.LayerNorm(states + activate(convolved, config.conv_act)) * layout.live.unsqueeze(1)


def _with_gaps(states: Tensor, layout: TokenLayout, gap: int) -> tuple[Tensor, Tensor]:
    """Copy states [T, D] into a run with `gap` zero rows before each document; also where each token went [T]."""
    num_documents = layout.document_sample.shape[0]
    flat = torch.arange(layout.num_tokens, device=states.device)
    # each padding token of a packed run has position 0; they follow all documents and, being zeros, need no gaps
    gaps_before = (layout.position == 0).long().cumsum(0).clamp(max=num_documents)
    place = flat + gap * gaps_before
    length = layout.num_tokens + gap * num_documents  # known without asking the device
    run = torch.zeros(length, states.shape[1], dtype=states.dtype, device=states.device)
    return run.index_copy(0, place, states), place
