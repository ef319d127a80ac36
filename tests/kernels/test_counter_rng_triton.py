"""The Triton twin of the counter RNG against the torch one, over counters that fill all of their 128 bits.

Without a GPU it runs in Triton's interpreter (tests/conftest.py).
"""

import pytest
import torch
from torch import Tensor

from disentangled.kernels import counter_rng

pytest.importorskip("triton")
import triton
import triton.language as tl

from disentangled.kernels.counter_rng_triton import key_words, random_words

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
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


def assert_equal_words(seed: int, stream: int, layer: int, sample: Tensor, token: Tensor, element: Tensor) -> None:
    expected = counter_rng.random_words(seed, stream, sample=sample, token=token, element=element, layer=layer)
    words = torch.full_like(expected, -1, device=DEVICE)
    places = (x.to(DEVICE) for x in (sample, token, element))
    store_random_words[(1,)](words, *key_words(seed), stream, layer, *places, len(sample), BLOCK=BLOCK)
    assert torch.equal(words.cpu(), expected)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32 + 5, 2**63 - 1, 2**64 - 2])
def test_triton_words_equal_torch_words_bit_for_bit(seed: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(bits: int) -> Tensor:
        return torch.randint(0, 2**bits, (200,), generator=generator)

    for stream, layer in ((0, 0), (255, 255), (3, 128)):
        assert_equal_words(seed, stream, layer, numbers(48), numbers(32), numbers(32))


def test_all_ones_give_the_known_answer() -> None:  # which test_counter_rng.py holds the torch words against
    full = torch.tensor([2**48 - 1]), torch.tensor([2**32 - 1]), torch.tensor([2**32 - 1])
    assert_equal_words(2**64 - 1, 255, 255, *full)
