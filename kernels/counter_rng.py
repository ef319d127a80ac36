"""Counter-based random numbers: Philox-4x32-10 in torch, the one source of randomness of a training run.

A draw is a pure function of what it is for: (seed, stream, layer, sample, token, element). No generator has a state,
so a draw depends on neither rank, micro-batch, number of workers nor the order of calls, and a resumed run repeats
it. Philox is from Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.

Key and counter, 32 bits a word (layout fixed: changing it changes every run):
    key      seed & 0xffffffff, seed >> 32
    counter  c0 = element    c1 = token    c2 = sample & 0xffffffff    c3 = stream | layer << 8 | (sample >> 32) << 16
with 8 bits of stream, 8 of layer and 48 of sample (a long run has more than 2^32 samples).

Dropout takes eight 16-bit decisions from one call: decision e of a block of eight elements is half e % 2 (low half
first) of word e // 2; the element survives where that number is >= round(p * 65536), and survivors are scaled by
65536 / (65536 - round(p * 65536)), the exact inverse of the probability of surviving. Hidden activations take
c0 = site << 24 | feature // 8; attention probabilities fill c0 in their own way (disentangled_attention/dropout.py), so
they have a stream of their own.

Shapes: the integers that name a place (sample, token, element) broadcast; token and element have 32 bits.
Used by: disentangled_attention, model (dropout, initialisation), trainer (masking, replacements).
Tested by: tests/kernels/test_counter_rng.py, against the known answers published with Random123.
Not here: the Triton twin (counter_rng_triton.py).
"""

import sys
from enum import IntEnum

import torch
from torch import Tensor

WORD_MASK = 0xFFFFFFFF
MULTIPLIER_0, MULTIPLIER_2 = 0xD2511F53, 0xCD9E8D57
KEY_STEP_0, KEY_STEP_1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10

DECISIONS_PER_CALL = 8
DECISION_VALUES = 1 << 16
MAX_SITES = 1 << 8

# Counters worked on at a time. CPU: six buffers of 1 MiB, allocated once a call and then reused from the cache (fresh
# pages for a whole batch cost more than the ten rounds). GPU: enough to fill it, in 200 MiB of buffers.
CHUNK_COUNTERS_CPU, CHUNK_COUNTERS_GPU = 1 << 17, 1 << 22


class Stream(IntEnum):
    """What a draw is for. The numbers are part of every run's identity: add new ones, never renumber."""

    MASKING = 0
    REPLACEMENT = 1
    GENERATOR_DROPOUT = 2
    DISCRIMINATOR_DROPOUT = 3
    GENERATOR_ATTENTION_DROPOUT = 4
    DISCRIMINATOR_ATTENTION_DROPOUT = 5
    GENERATOR_REL_DROPOUT = 6
    DISCRIMINATOR_REL_DROPOUT = 7
    INITIALIZE = 8
    EVALUATION_MASKING = 9
    EVALUATION_REPLACEMENT = 10


def random_words(
    seed: int,
    stream: int,
    *,
    sample: Tensor | int,
    token: Tensor | int,
    element: Tensor | int,
    layer: int = 0,
) -> Tensor:
    """Four random 32-bit words for each broadcast (sample, token, element): int64 [..., 4], values in [0, 2^32)."""
    counter = torch.broadcast_tensors(*_counter(stream, layer, sample, token, element))
    shape, device = counter[0].shape, counter[0].device
    counter = [word.reshape(-1) for word in counter]
    words = torch.empty((shape.numel(), 4), dtype=torch.int64, device=device)
    for start in range(0, shape.numel(), _chunk_counters(device)):
        chunk = slice(start, start + _chunk_counters(device))
        torch.stack(_philox_rounds([word[chunk].clone() for word in counter], seed), dim=-1, out=words[chunk])
    return words.bitwise_and_(WORD_MASK).view(*shape, 4)


def uniform(
    seed: int,
    stream: int,
    *,
    sample: Tensor | int,
    token: Tensor | int,
    element: Tensor | int,
    layer: int = 0,
) -> Tensor:
    """A float64 strictly inside (0, 1) for each broadcast (sample, token, element): the first of `uniform_pair`."""
    return uniform_pair(seed, stream, sample=sample, token=token, element=element, layer=layer)[..., 0]


def uniform_pair(
    seed: int,
    stream: int,
    *,
    sample: Tensor | int,
    token: Tensor | int,
    element: Tensor | int,
    layer: int = 0,
) -> Tensor:
    """Two float64 strictly inside (0, 1) for each broadcast (sample, token, element): [..., 2].

    A value is an odd multiple of 2^-53 made of the 32 bits of one word and the top 20 of the next (words 0 and 1, then
    2 and 3), so neither log(u) nor log(1 - u) is ever infinite, u and 1 - u are equally likely, and no rounding takes
    place.
    """
    words = random_words(seed, stream, sample=sample, token=token, element=element, layer=layer)
    bits = (words[..., 0::2] << 20) | (words[..., 1::2] >> 12)
    return (2 * bits + 1).to(torch.float64) * 2.0**-53


def drop_threshold(probability: float) -> int:
    """The 16-bit number below which an element is dropped: round(p * 65536). So p acts in steps of 1 / 65536."""
    threshold = round(probability * DECISION_VALUES) if 0.0 <= probability < 1.0 else DECISION_VALUES
    if threshold == DECISION_VALUES:
        raise ValueError(f"dropout probability {probability} is not in [0, 1): give one below 1 - 2^-17")
    return threshold


def keep_scale(probability: float) -> float:
    """What survivors are multiplied by, so that the expectation is exactly unchanged."""
    return DECISION_VALUES / (DECISION_VALUES - drop_threshold(probability))


def signed_seed(seed: int) -> int:
    """The signed number of the same 64 bits: operators of torch take no unsigned ones, and give it back modulo 2^64.

    A comparison and no shifts: of a seed that torch.compile takes as a symbol, shifts would become guards which cannot
    be evaluated.
    """
    return seed if seed < 1 << 63 else seed - (1 << 64)


def keep_mask(
    probability: float,
    num_elements: int,
    *,
    seed: int,
    stream: int,
    layer: int,
    sample: Tensor | int,
    token: Tensor | int,
    first_block: Tensor | int,
) -> Tensor:
    """Decisions for elements 0 .. num_elements - 1 of each broadcast (sample, token, first_block): bool, True = keep.

    Shape [..., num_elements]; element e of a row is decided by the call whose c0 is first_block + e // 8.
    """
    c0, c1, c2, c3 = (word.unsqueeze(-1) for word in _counter(stream, layer, sample, token, first_block))
    rows_shape = torch.broadcast_shapes(c0.shape, c1.shape, c2.shape, c3.shape)[:-1]
    c0, c1, c2, c3 = (word.expand(*rows_shape, 1).reshape(-1, 1) for word in (c0, c1, c2, c3))
    num_rows, device = c0.shape[0], c0.device
    num_blocks = -(-num_elements // DECISIONS_PER_CALL)
    keep = torch.empty((num_rows, num_elements), dtype=torch.bool, device=device)
    if keep.numel() == 0:
        return keep.view(*rows_shape, num_elements)

    block = torch.arange(num_blocks, device=device)
    chunk_rows = min(num_rows, max(1, _chunk_counters(device) // num_blocks))
    buffers = torch.empty((6, chunk_rows, num_blocks), dtype=torch.int64, device=device)
    packed = torch.empty((chunk_rows, num_blocks, 4), dtype=torch.int32, device=device)
    # The 16-bit numbers are unsigned and int16 is not: flip the top bit of both sides of the comparison.
    signed_threshold = drop_threshold(probability) - DECISION_VALUES // 2
    for start in range(0, num_rows, chunk_rows):
        rows = slice(start, min(start + chunk_rows, num_rows))
        counter = list(buffers[:, : rows.stop - rows.start].unbind())
        torch.add(c0[rows], block, out=counter[0])
        for word, value in zip(counter[1:4], (c1, c2, c3), strict=True):
            word.copy_(value[rows])
        halves = packed[: rows.stop - rows.start]
        for index, word in enumerate(_philox_rounds(counter[:4], seed, products=counter[4:])):
            halves[..., index].copy_(word)
        decisions = halves.view(torch.int16).flatten(1).bitwise_xor_(-(DECISION_VALUES // 2))
        torch.ge(decisions[:, :num_elements], signed_threshold, out=keep[rows])
    return keep.view(*rows_shape, num_elements)


def dropout(
    x: Tensor,
    probability: float,
    *,
    seed: int,
    stream: int,
    layer: int,
    site: int,
    sample: Tensor | int,
    token: Tensor | int,
) -> Tensor:
    """Dropout of hidden activations x [..., F]; sample and token broadcast to x.shape[:-1]. p = 0 returns x itself.

    `site` tells several dropouts of one layer apart; `sample` is the row's global sample index and `token` the index in
    the row, so that the decision for a value does not depend on the batch that it is in.
    """
    if drop_threshold(probability) == 0:
        return x
    if not 0 <= int(site) < MAX_SITES:
        raise ValueError(f"dropout site {site} is outside 0..{MAX_SITES - 1}: number the dropouts of one layer from 0")
    rows_shape = x.shape[:-1]
    sample, token = (
        torch.as_tensor(place, dtype=torch.int64, device=x.device).expand(rows_shape) for place in (sample, token)
    )
    if torch.compiler.is_compiling():
        keep = torch.ops.disentangled.keep_mask(
            probability, x.shape[-1], signed_seed(seed), int(stream), layer, sample, token, site << 24
        )
        return (x * keep) * keep_scale(probability)
    keep = keep_mask(
        probability,
        x.shape[-1],
        seed=seed,
        stream=stream,
        layer=layer,
        sample=sample,
        token=token,
        first_block=site << 24,
    )
    return (x * keep) * keep_scale(probability)  # so that the scale is not rounded to x's dtype


def _counter(stream: int, layer: int, sample: Tensor | int, token: Tensor | int, element: Tensor | int) -> list[Tensor]:
    """The four counter words, each in the shape of what it is made of."""
    if sys.byteorder != "little":
        raise RuntimeError("counter_rng reads a word as two halves, the low one first: use a little-endian machine")
    if not 0 <= stream < 1 << 8 or not 0 <= layer < 1 << 8:
        raise ValueError(f"stream {int(stream)}, layer {layer}: each must be in 0..255, the counter has 8 bits for it")
    device = next((place.device for place in (sample, token, element) if isinstance(place, Tensor)), None)
    sample, token, element = (
        torch.as_tensor(place, dtype=torch.int64, device=device) for place in (sample, token, element)
    )
    purpose = (sample >> 32 << 16).bitwise_or_(int(stream) | layer << 8)
    return [element, token, sample & WORD_MASK, purpose]


def _chunk_counters(device: torch.device) -> int:
    return CHUNK_COUNTERS_CPU if device.type == "cpu" else CHUNK_COUNTERS_GPU


def _philox_rounds(counter: list[Tensor], seed: int, products: list[Tensor] | None = None) -> tuple[Tensor, ...]:
    """The ten rounds, in place: `counter` (and `products`, two buffers of its shape) are overwritten.

    The four words come back in the low halves of int64; the high halves of the second and the fourth hold left-overs.
    A product of two 32-bit words can exceed 2^63: it then wraps, modulo 2^64, so that as a pattern of 64 bits it is
    always exact; the arithmetic shift copies the sign into the high half, which the mask clears.
    """
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed} is not a 64-bit number: give one in 0..2^64-1")
    key_0, key_1 = seed & WORD_MASK, seed >> 32
    c0, c1, c2, c3 = counter
    product_0, product_2 = products or (torch.empty_like(c0), torch.empty_like(c0))
    for _ in range(NUM_ROUNDS):
        torch.mul(c0, MULTIPLIER_0, out=product_0)
        torch.mul(c2, MULTIPLIER_2, out=product_2)
        torch.bitwise_right_shift(product_2, 32, out=c0).bitwise_xor_(c1).bitwise_xor_(key_0).bitwise_and_(WORD_MASK)
        torch.bitwise_right_shift(product_0, 32, out=c2).bitwise_xor_(c3).bitwise_xor_(key_1).bitwise_and_(WORD_MASK)
        c1, product_2 = product_2, c1  # the low half of the product; its high half is masked when it is next used
        c3, product_0 = product_0, c3
        key_0, key_1 = (key_0 + KEY_STEP_0) & WORD_MASK, (key_1 + KEY_STEP_1) & WORD_MASK
    return c0, c1, c2, c3
