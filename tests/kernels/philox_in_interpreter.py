"""Run by test_counter_rng_triton.py in a process of its own: TRITON_INTERPRET must be set before triton is imported.

Compares the Triton twin with counter_rng, over counters that fill all of their 128 bits; a bit that differs raises.
"""

import torch
import triton
import triton.language as tl

from disentangled.kernels import counter_rng
from disentangled.kernels.counter_rng_triton import key_words, random_words

BLOCK = 256


@triton.jit
def store_random_words(
    words_ptr, key_0, key_1, stream, layer, sample_ptr, token_ptr, element_ptr, num_counters, BLOCK: tl.constexpr
):
    offs = tl.arange(0, BLOCK)
    counter_mask = offs < num_counters
    sample = tl.load(sample_ptr + offs, mask=counter_mask, other=0)
    token = tl.load(token_ptr + offs, mask=counter_mask, other=0).to(tl.uint32)
    element = tl.load(element_ptr + offs, mask=counter_mask, other=0).to(tl.uint32)
    w0, w1, w2, w3 = random_words(key_0, key_1, stream, layer, sample, token, element)
    tl.store(words_ptr + offs * 4 + 0, w0.to(tl.int64), mask=counter_mask)
    tl.store(words_ptr + offs * 4 + 1, w1.to(tl.int64), mask=counter_mask)
    tl.store(words_ptr + offs * 4 + 2, w2.to(tl.int64), mask=counter_mask)
    tl.store(words_ptr + offs * 4 + 3, w3.to(tl.int64), mask=counter_mask)


def compare(
    seed: int, stream: int, layer: int, sample: torch.Tensor, token: torch.Tensor, element: torch.Tensor
) -> None:
    expected = counter_rng.random_words(seed, stream, sample=sample, token=token, element=element, layer=layer)
    words = torch.full_like(expected, -1)
    store_random_words[(1,)](words, *key_words(seed), stream, layer, sample, token, element, len(sample), BLOCK=BLOCK)
    torch.testing.assert_close(words, expected, rtol=0, atol=0)


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(bits: int, count: int) -> torch.Tensor:
        return torch.randint(0, 2**bits, (count,), generator=generator)

    for seed in (0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**64 - 2):
        for stream, layer in ((0, 0), (255, 255), (3, 128)):
            compare(seed, stream, layer, numbers(48, 200), numbers(32, 200), numbers(32, 200))
    full = torch.tensor([2**48 - 1]), torch.tensor([2**32 - 1]), torch.tensor([2**32 - 1])
    compare(2**64 - 1, 255, 255, *full)  # the known answer of all ones, tested in test_counter_rng.py


if __name__ == "__main__":
    main()
