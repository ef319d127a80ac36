"""Small models, layouts and a Hugging Face twin for the tests of model/."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2Model

from disentangled.kernels.counter_rng import Stream
from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Sampling
from disentangled.model.layout import TokenLayout, packed_layout, padded_layout

MASK_ID = 4
FIRST_TEXT_ID = 5  # [PAD], [CLS], [SEP], [UNK] and [MASK] come before

# float64: rounding of sums of some thousand terms of size 1 stays 100 times below, any real difference far above
EXACT = 1e-11


def tiny_config(**changes: object) -> DebertaConfig:
    """Three layers of width 32; buckets so narrow that documents of 20 tokens reach the last of them."""
    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 160,
        "max_relative_positions": 16,
        "position_buckets": 8,
    }
    return DebertaConfig(**sizes | changes)


def hf_config(config: DebertaConfig) -> DebertaV2Config:
    """The same architecture as Hugging Face writes DeBERTaV3's config.json."""
    fields = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return DebertaV2Config(
        **fields | {"pos_att_type": list(config.pos_att_type)}, relative_attention=True, type_vocab_size=0, legacy=False
    )


def scramble(model: nn.Module, seed: int = 0, spread: float = 0.1) -> nn.Module:
    """Random values in every parameter, so that no bias is zero, no LayerNorm the identity and attention is uneven."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * spread
            parameter.copy_(values + 1.0 if name.endswith("LayerNorm.weight") else values)
    return model


def twins(config: DebertaConfig, dtype: torch.dtype, spread: float = 0.1) -> tuple[DebertaV2Model, Discriminator]:
    """Hugging Face's encoder and ours with the same weights, without dropout."""
    reference = scramble(DebertaV2Model(hf_config(config)), spread=spread).eval()
    ours = scramble(Discriminator(config, "nes"), spread=spread)
    ours.deberta.load_state_dict(reference.state_dict())  # strict: the names are the same
    return reference.to(dtype), ours.to(dtype)


def text_ids(num_tokens: int, vocab_size: int = 60, seed: int = 1) -> Tensor:
    """[num_tokens] ids of ordinary pieces."""
    return torch.randint(FIRST_TEXT_ID, vocab_size, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def padded_batch(lengths: Sequence[int], num_columns: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids and attention mask [B, N] of documents of these lengths, padded on the right."""
    num_columns = num_columns or max(lengths)
    mask = (torch.arange(num_columns) < torch.tensor(lengths).unsqueeze(1)).long()
    return text_ids(len(lengths) * num_columns).view(mask.shape) * mask, mask


def packed_run(
    lengths: Sequence[int],
    tail: int = 0,
    samples: Sequence[int] | None = None,
    first_tokens: Sequence[int] | None = None,
) -> TokenLayout:
    """Documents of these lengths and `tail` padding tokens; each in a row of its own unless said otherwise."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return packed_layout(
        ends,
        max_seqlen=max(lengths, default=1),
        num_tokens=sum(lengths) + tail,
        document_sample=torch.tensor(list(samples or range(len(lengths))), dtype=torch.int64),
        document_first_token=torch.tensor(list(first_tokens or [0] * len(lengths)), dtype=torch.int64),
    )


def alone(length: int, sample: int, first_token: int) -> TokenLayout:
    """One document as a padded batch of one row, keyed as the document at `first_token` of row `sample` is."""
    row = padded_layout(torch.ones(1, length), torch.tensor([sample]))
    return replace(row, token=row.token + first_token, document_first_token=torch.tensor([first_token]))


def sampling(vocab_size: int = 60, seed: int = 3) -> Sampling:
    """Replacements among ordinary pieces."""
    return Sampling(seed, Stream.REPLACEMENT, torch.arange(vocab_size) < FIRST_TEXT_ID)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient; None is an error."""
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not missing, f"no gradient: {missing}"
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def largest_error(got: Tensor, expected: Tensor) -> float:
    """max |got - expected|; infinite where that is not finite."""
    assert got.shape == expected.shape, f"shape {list(got.shape)} instead of {list(expected.shape)}"
    return float((got.detach().double() - expected.detach().double()).abs().nan_to_num(nan=torch.inf).max())
