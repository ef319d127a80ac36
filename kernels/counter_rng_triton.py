"""Counter-based random numbers inside Triton kernels: the twin of counter_rng.py, equal to it bit for bit.

The key, the counter's layout and what each word means are documented there. Triton's own tl.philox is the same
cipher, but its counter is laid out by Triton; here the layout is ours, so that a fused kernel repeats what the torch
ops draw.
Shapes: sample (int64), token and element (int32 or uint32) are blocks of one shape; the words are uint32 of that
shape.
Used by: the fused kernels. Tested by: tests/kernels/test_counter_rng_triton.py, in Triton's interpreter.
Not here: anything that runs without Triton; import counter_rng for that.
"""

import triton
import triton.language as tl

from disentangled.kernels import counter_rng

MULTIPLIER_0 = tl.constexpr(counter_rng.MULTIPLIER_0)
MULTIPLIER_2 = tl.constexpr(counter_rng.MULTIPLIER_2)
KEY_STEP_0 = tl.constexpr(counter_rng.KEY_STEP_0)
KEY_STEP_1 = tl.constexpr(counter_rng.KEY_STEP_1)
NUM_ROUNDS = tl.constexpr(counter_rng.NUM_ROUNDS)


@triton.jit
def philox_4x32_10(c0, c1, c2, c3, key_0, key_1):
    """The ten rounds on uint32 blocks of counter words c0..c3 and uint32 keys; returns four uint32 blocks."""
    for _ in tl.static_range(NUM_ROUNDS):
        # One 64-bit product is one instruction, its high and low words apart are two.
        product_0 = c0.to(tl.uint64) * MULTIPLIER_0
        product_2 = c2.to(tl.uint64) * MULTIPLIER_2
        c0, c1, c2, c3 = (
            (product_2 >> 32).to(tl.uint32) ^ c1 ^ key_0,
            product_2.to(tl.uint32),
            (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1,
            product_0.to(tl.uint32),
        )
        key_0, key_1 = key_0 + KEY_STEP_0, key_1 + KEY_STEP_1
    return c0, c1, c2, c3


def key_words(seed: int) -> tuple[int, int]:
    """The halves of a 64-bit seed, as the int32 scalars that a kernel takes.

    Two of 32 bits and signed, because Triton picks a scalar's type by its value, and its interpreter misreads those in
    2^31 .. 2^32 - 1.
    """
    low, high = seed & counter_rng.WORD_MASK, seed >> 32
    return low - (low >> 31 << 32), high - (high >> 31 << 32)


@triton.jit
def random_words(key_0, key_1, stream, layer, sample, token, element):
    """Four uint32 blocks of random words: counter_rng.random_words, with the seed as its key_words."""
    purpose = (stream | (layer << 8)) | ((sample >> 32) << 16)
    return philox_4x32_10(
        element.to(tl.uint32),
        token.to(tl.uint32),
        sample.to(tl.uint32),
        purpose.to(tl.uint32),
        tl.cast(key_0, tl.uint32),  # cast, as a scalar of value 1 is a constant without .to
        tl.cast(key_1, tl.uint32),
    )


@triton.jit
def uniform(word, next_word):
    """A float64 strictly inside (0, 1) of two random words: counter_rng.uniform_pair's, bit for bit."""
    bits = (word.to(tl.uint64) << 20) | (next_word.to(tl.uint64) >> 12)
    return (2 * bits.to(tl.int64) + 1).to(tl.float64) * 1.1102230246251565e-16  # 2^-53
