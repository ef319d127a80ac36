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
        high_0, low_0 = tl.umulhi(c0, MULTIPLIER_0), c0 * MULTIPLIER_0
        high_2, low_2 = tl.umulhi(c2, MULTIPLIER_2), c2 * MULTIPLIER_2
        c0, c1, c2, c3 = high_2 ^ c1 ^ key_0, low_2, high_0 ^ c3 ^ key_1, low_0
        key_0, key_1 = key_0 + KEY_STEP_0, key_1 + KEY_STEP_1
    return c0, c1, c2, c3


@triton.jit
def random_words(seed, stream, layer, sample, token, element):
    """Four uint32 blocks of random words: counter_rng.random_words; seed is a scalar of up to 64 bits."""
    seed = tl.cast(seed, tl.int64)  # Triton passes a small seed as int32
    key_0, key_1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    purpose = (stream | (layer << 8)) | ((sample >> 32) << 16)
    return philox_4x32_10(
        element.to(tl.uint32), token.to(tl.uint32), sample.to(tl.uint32), purpose.to(tl.uint32), key_0, key_1
    )
