"""One attention problem to time: how long its documents are, its tensors, its exact answer, its operations.

Every implementation gets the same tensors in the layout that a model's projections leave, [B, T, N, H], or packed
[tokens, N, H]. The tensors are standard normal, so that with DeBERTa's scale the scores have a variance of 1.

A problem's answer is checked on one document and two heads of the very problem that is timed: with a gradient of the
output that is zero elsewhere, even the gradients of the tables come from that document alone, so nothing has to be
compiled for a second, smaller shape.

Used by: benchmarks/ops.py, rivals.py, measure.py. Tested by: tests/benchmarks/test_ops.py.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.disentangled_attention.dropout import AttentionDropout
from tests.kernels.attention_case import AttentionCase

# B batch  T tokens of a row  N heads  H head width  k position buckets

HEAD_WIDTH = 64
POSITION_BUCKETS = 256
MAX_RELATIVE_POSITIONS = 512
TABLE_ROWS = 2 * POSITION_BUCKETS
SCALE = (3 * HEAD_WIDTH) ** -0.5  # three terms in a score

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LAYOUTS = ("dense", "packed", "padded")
DROPOUT = 0.1
DROPOUT_SUFFIX = "+dropout"
CASES = (*LAYOUTS, *(layout + DROPOUT_SUFFIX for layout in LAYOUTS))

SEED = 20261121
MEDIAN_DOCUMENT_TOKENS = 500  # with a spread of e: a mean of 824, and 1.8 % of the documents beyond 4,096
DOCUMENT_SPREAD = 1.0
SPECIAL_TOKENS = 2  # [CLS] and [SEP], which shards do not store
REFERENCE_HEADS = 2
REFERENCE_TOKENS = 8192
# On a CPU float64 is slow, and the reference draws dropout's decisions one by one on the CPU.
SLOW_REFERENCE_TOKENS = 1024


@dataclass(frozen=True)
class Setting:
    """What tells one problem from another. length_tokens: the longest document, and the row of a padded batch."""

    length_tokens: int
    heads: int
    dtype: str
    case: str
    total_tokens: int

    @property
    def layout(self) -> str:
        return self.case.removesuffix(DROPOUT_SUFFIX)

    @property
    def dropout(self) -> float:
        return DROPOUT if self.case.endswith(DROPOUT_SUFFIX) else 0.0


@dataclass(frozen=True, eq=False)
class Problem:
    """The tensors of a setting.

    query, key, value, grad_output   [B, T, N, H], or packed [tokens, N, H]; grad_output is zero at padding
    rel_key, rel_query               [N, 2k, H]
    documents                        where each document's live tokens are in the flattened tokens
    live                             bool [B, T]; None for packed
    cu_seqlens                       int32 [documents + 1]; None for padded and dense
    """

    setting: Setting
    query: Tensor
    key: Tensor
    value: Tensor
    rel_key: Tensor
    rel_query: Tensor
    grad_output: Tensor
    documents: tuple[slice, ...]
    live: Tensor | None
    cu_seqlens: Tensor | None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Live tokens of every document."""
        return tuple(document.stop - document.start for document in self.documents)

    @property
    def dropout(self) -> AttentionDropout | None:
        """Our op's dropout: every document is a sample of its own."""
        if not self.setting.dropout:
            return None
        sample = torch.arange(len(self.documents), device=self.query.device)
        stream = Stream.DISCRIMINATOR_ATTENTION_DROPOUT
        return AttentionDropout(self.setting.dropout, SEED, stream, 0, sample, torch.zeros_like(sample))

    @property
    def checked_document(self) -> int:
        """The longest document that has padding or neighbours; the first one where all are full."""
        full = self.setting.length_tokens
        return max(range(len(self.lengths)), key=lambda index: (self.lengths[index] < full, self.lengths[index]))


def make_problem(setting: Setting, text_lengths: tuple[int, ...], device: str) -> Problem:
    """The tensors of a setting; the same ones each time on the same device."""
    documents = _documents(setting, text_lengths)
    generator = torch.Generator(device).manual_seed(SEED)
    packed = setting.layout == "packed"
    num_tokens = documents[-1].stop if packed else len(documents) * setting.length_tokens
    leading = (num_tokens,) if packed else (len(documents), setting.length_tokens)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, HEAD_WIDTH, generator=generator, device=device).to(DTYPES[setting.dtype])

    query, key, value, grad_output = (normal(*leading, setting.heads) for _ in range(4))
    rel_key, rel_query = (normal(setting.heads, TABLE_ROWS) for _ in range(2))
    live = torch.zeros(num_tokens, dtype=torch.bool)
    for document in documents:
        live[document] = True
    live = live.to(device).view(leading)
    starts = torch.tensor([0, *(document.stop for document in documents)], dtype=torch.int32, device=device)
    return Problem(
        setting, query, key, value, rel_key, rel_query, grad_output * live[..., None, None], documents,
        live=None if packed else live, cu_seqlens=starts if packed else None,
    )  # fmt: skip


def exact_answer(problem: Problem) -> dict[str, Tensor] | None:
    """Output and gradients of the checked document and the first heads, in float64; None where that takes too long."""
    index = problem.checked_document
    document = problem.documents[index]
    slow = problem.setting.dropout > 0 or problem.query.device.type == "cpu"
    if problem.lengths[index] > (SLOW_REFERENCE_TOKENS if slow else REFERENCE_TOKENS):
        return None
    dropout = problem.dropout
    if dropout is not None:
        chosen = slice(index, index + 1)
        dropout = AttentionDropout(
            dropout.probability, dropout.seed, dropout.stream, dropout.layer,
            dropout.sample[chosen], dropout.first_token[chosen],
        )  # fmt: skip
    *content, grad_output = (
        checked_part(x, document)[None] for x in (problem.query, problem.key, problem.value, problem.grad_output)
    )
    tables = (problem.rel_key[:REFERENCE_HEADS], problem.rel_query[:REFERENCE_HEADS])
    case = AttentionCase((*content, *tables), grad_output, position_keywords() | {"dropout": dropout})
    answer = case.run("reference", torch.float64)
    return {name: x if name.startswith("grad_rel") else x[0] for name, x in answer.items()}


def checked_part(x: Tensor, document: slice) -> Tensor:
    """A document's tokens and the first heads of [..., N, H]: [tokens, heads, H]."""
    return x.flatten(0, -3)[document, :REFERENCE_HEADS]


def position_keywords() -> dict[str, Any]:
    """What our op has to know beside the tensors."""
    return {
        "position_buckets": POSITION_BUCKETS,
        "max_relative_positions": MAX_RELATIVE_POSITIONS,
        "scale": SCALE,
    }


def count_flops(lengths: tuple[int, ...], heads: int, with_positions: bool) -> tuple[float, float]:
    """Operations of forward and of backward that any implementation must do; what one does beyond is overhead.

    Content, over the live pairs: two products forward and five backward (flash attention's count, with the scores
    computed again). Positions, over the live tokens and the table rows within reach: a product forward and two
    backward for each of the two terms.
    """
    content = 2.0 * HEAD_WIDTH * heads * sum(length**2 for length in lengths)
    positions = 2.0 * HEAD_WIDTH * heads * sum(length * min(2 * length - 1, TABLE_ROWS) for length in lengths)
    positions *= with_positions
    return 2 * content + 2 * positions, 5 * content + 4 * positions


def builtin_text_lengths() -> tuple[int, ...]:
    """Document lengths in tokens, log-normal: a stand-in for real text, the same on every machine."""
    draws = np.random.default_rng(SEED).lognormal(math.log(MEDIAN_DOCUMENT_TOKENS), DOCUMENT_SPREAD, size=20_000)
    return tuple(int(draw) + SPECIAL_TOKENS for draw in draws)


def shard_text_lengths(directory: Path) -> tuple[int, ...]:
    """Document lengths of a dataset's training split, its special tokens included, in a fixed random order."""
    from disentangled.data_prep.shard_schema import load_manifest, open_shard  # xxhash is not on every GPU machine

    records = load_manifest(directory).splits["train"]
    lengths = np.concatenate([np.diff(open_shard(directory, record).offsets) for record in records]) + SPECIAL_TOKENS
    return tuple(np.random.default_rng(SEED).permutation(lengths).tolist())


def _documents(setting: Setting, text_lengths: tuple[int, ...]) -> tuple[slice, ...]:
    """The live tokens of each document in the flattened tokens."""
    length, rows = setting.length_tokens, max(1, setting.total_tokens // setting.length_tokens)
    clipped = [min(text_length, length) for text_length in text_lengths]
    if setting.layout == "packed":
        filled = np.cumsum(np.resize(clipped, setting.total_tokens))  # a document has a token at least
        stops = [*filled[filled < setting.total_tokens].tolist(), setting.total_tokens]
        return tuple(slice(start, stop) for start, stop in zip([0, *stops], stops, strict=False))
    # A batch is padded to its longest document, so one fills its row.
    live = [length] * rows if setting.layout == "dense" else [length, *np.resize(clipped, rows - 1).tolist()]
    return tuple(slice(row * length, row * length + live[row]) for row in range(rows))
