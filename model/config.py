"""Sizes and switches of one DeBERTa encoder, spelled as in Hugging Face's `DebertaV2Config`.

What: one frozen dataclass, checked when it is made. The generator of a pair differs from its discriminator only in
`num_hidden_layers` (half the depth, arXiv 2111.09543 section 4.1), see `generator_config`.
Used by: every module of `model/`, `trainer/run_config.py`, `model/hf_checkpoint.py`.
Not here: named sizes; they are recipes (`recipes/*.toml`).
"""

from dataclasses import dataclass, replace

ACTIVATIONS = ("gelu", "tanh", "relu")
COUNTS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "conv_groups",
)


@dataclass(frozen=True)
class DebertaConfig:
    """Architecture of one encoder. Defaults are DeBERTaV3-base's (arXiv 2111.09543, table 10).

    Raises:
        ValueError: a width that its heads do not divide, an unknown activation or attention term, a count below one, a
            probability outside [0, 1), buckets that the longest distance leaves no room for.
    """

    vocab_size: int = 128_100
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    max_relative_positions: int = -1  # -1: max_position_embeddings
    position_buckets: int = 256  # 0: one row per distance, no log buckets
    pos_att_type: tuple[str, ...] = ("p2c", "c2p")
    share_att_key: bool = True
    norm_rel_ebd: str = "layer_norm"
    position_biased_input: bool = False
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-7
    conv_kernel_size: int = 0  # 3 in DeBERTaV2 xlarge and xxlarge
    conv_groups: int = 1
    conv_act: str = "tanh"
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "pos_att_type", tuple(self.pos_att_type))
        for name in COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        for name in ("initializer_range", "layer_norm_eps"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be above 0")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.num_attention_heads is {self.num_attention_heads}, which does not divide model.hidden_size "
                f"{self.hidden_size}: choose one of {_divisors(self.hidden_size)}"
            )
        for name in ("hidden_act", "conv_act"):
            if getattr(self, name) not in ACTIVATIONS:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}: choose one of {', '.join(ACTIVATIONS)}")
        if sorted(self.pos_att_type) not in (["c2p"], ["p2c"], ["c2p", "p2c"]):
            raise ValueError(
                f"model.pos_att_type is {list(self.pos_att_type)}: it must hold c2p, p2c or both, each once"
            )
        if self.norm_rel_ebd not in ("none", "layer_norm"):
            raise ValueError(f"model.norm_rel_ebd is {self.norm_rel_ebd!r}: choose none or layer_norm")
        if self.position_buckets == 1 or 0 < self.position_buckets // 2 > self.relative_span - 2:
            raise ValueError(
                f"model.position_buckets is {self.position_buckets} but relative distances end at {self.relative_span} "
                "(model.max_relative_positions, or else model.max_position_embeddings): "
                f"give 2 to {2 * self.relative_span - 4}, or 0 for none"
            )
        if self.conv_kernel_size != 0 and (self.conv_kernel_size < 0 or self.conv_kernel_size % 2 == 0):
            raise ValueError(f"model.conv_kernel_size is {self.conv_kernel_size}: give an odd number, or 0 for none")
        if self.hidden_size % self.conv_groups:
            raise ValueError(
                f"model.conv_groups is {self.conv_groups}, which does not divide model.hidden_size {self.hidden_size}: "
                f"choose one of {_divisors(self.hidden_size)}"
            )

    @property
    def attention_head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def relative_span(self) -> int:
        """The largest |distance| before log buckets set in for good: HF's resolved `max_relative_positions`."""
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings

    @property
    def att_span(self) -> int:
        """k: half the rows of the relative table, arXiv 2006.03654 section 3.1."""
        return self.position_buckets if self.position_buckets > 0 else self.relative_span

    @property
    def attention_scale(self) -> float:
        """1 / sqrt(terms * head size): each of content, c2p and p2c adds variance (arXiv 2006.03654, equation 4)."""
        return float(((1 + len(self.pos_att_type)) * self.attention_head_size) ** -0.5)


def generator_config(discriminator: DebertaConfig, num_hidden_layers: int) -> DebertaConfig:
    """The generator's config: the discriminator's width at another depth (arXiv 2111.09543 section 4.1)."""
    if num_hidden_layers < 1:
        raise ValueError(f"model.generator_num_hidden_layers is {num_hidden_layers}: it must be at least 1")
    return replace(discriminator, num_hidden_layers=num_hidden_layers)


def _divisors(width: int) -> str:
    return ", ".join(str(heads) for heads in range(1, min(width, 128) + 1) if width % heads == 0)
