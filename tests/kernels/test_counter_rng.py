"""The counter RNG against Random123's known answers, against Python's integers, and as a source of dropout."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from disentangled.kernels import counter_rng
from disentangled.kernels.counter_rng import Stream, dropout, keep_mask, keep_scale, random_words, uniform

# Random123, tests/kat_vectors, philox4x32-10: counter, key, answer
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_in_hex(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """The cipher in Python's unbounded integers, straight from the paper's description."""
    c0, c1, c2, c3 = counter
    for round_index in range(10):
        key_0 = (key[0] + round_index * 0x9E3779B9) % 2**32
        key_1 = (key[1] + round_index * 0xBB67AE85) % 2**32
        product_0, product_2 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1 = product_2 // 2**32 ^ c1 ^ key_0, product_2 % 2**32
        c2, c3 = product_0 // 2**32 ^ c3 ^ key_1, product_0 % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_random_words_match_published_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = words_in_hex(counter)
    key_0, key_1 = words_in_hex(key)
    words = random_words(
        key_0 | key_1 << 32, c3 & 0xFF, layer=c3 >> 8 & 0xFF, sample=c2 | c3 >> 16 << 32, token=c1, element=c0
    )
    assert words.tolist() == words_in_hex(answer)


def test_random_words_match_python_integers_over_broadcast_places() -> None:
    generator = torch.Generator().manual_seed(0)
    sample = torch.randint(0, 2**48, (5, 1, 1), generator=generator)
    token = torch.randint(0, 2**32, (7, 1), generator=generator)
    element = torch.randint(0, 2**32, (3,), generator=generator)
    seed, stream, layer = 2**64 - 12345, 200, 77
    words = random_words(seed, stream, sample=sample, token=token, element=element, layer=layer)
    assert words.shape == (5, 7, 3, 4)
    for i, j, k in [(0, 0, 0), (4, 6, 2), (2, 5, 1), (3, 1, 0)]:
        s = int(sample[i, 0, 0])
        counter = [int(element[k]), int(token[j, 0]), s % 2**32, stream | layer << 8 | s // 2**32 << 16]
        assert words[i, j, k].tolist() == philox_in_python(counter, [seed % 2**32, seed // 2**32])


def test_random_words_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    places = {"sample": torch.arange(11)[:, None], "token": torch.arange(5), "element": 3}
    whole = random_words(7, Stream.MASKING, **places)
    monkeypatch.setattr(counter_rng, "CHUNK_COUNTERS_CPU", 4)
    assert torch.equal(random_words(7, Stream.MASKING, **places), whole)


def test_random_words_leave_their_arguments_alone() -> None:
    places = {name: torch.arange(6) for name in ("sample", "token", "element")}
    random_words(7, Stream.MASKING, **places)
    assert all(torch.equal(place, torch.arange(6)) for place in places.values())


def test_uniform_has_the_moments_of_a_uniform() -> None:
    draws = uniform(3, Stream.REPLACEMENT, sample=torch.arange(500)[:, None], token=torch.arange(400), element=0)
    assert draws.dtype == torch.float64
    assert abs(float(draws.mean()) - 0.5) < 5 * (1 / 12 / draws.numel()) ** 0.5
    assert abs(float(draws.var()) - 1 / 12) < 5 * (1 / 180 / draws.numel()) ** 0.5
    assert draws.unique().numel() == draws.numel()


@pytest.mark.parametrize(("word", "expected"), [(0, 2.0**-53), (0xFFFFFFFF, 1 - 2.0**-53)])
def test_uniform_is_strictly_inside_the_unit_interval(
    word: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counter_rng, "random_words", lambda *_args, **_places: torch.full((4,), word))
    assert float(uniform(0, Stream.MASKING, sample=0, token=0, element=0)) == expected


def decisions_one_by_one(probability: float, num_elements: int, first_block: int, **place: int) -> list[bool]:
    """The contract word for word: decision e is half e % 2 of word e // 2 of its block's call."""
    threshold = round(probability * 65536)
    keep = []
    for element in range(num_elements):
        words = random_words(element=first_block + element // 8, **place)
        word = int(words[element % 8 // 2])
        keep.append((word >> 16 if element % 2 else word & 0xFFFF) >= threshold)
    return keep


@pytest.mark.parametrize("num_elements", [1, 7, 8, 63])
@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_keep_mask_takes_eight_decisions_from_one_call(probability: float, num_elements: int) -> None:
    place = {"seed": 9, "stream": 4, "layer": 2, "sample": 2**40 + 1, "token": 17}
    keep = keep_mask(probability, num_elements, first_block=3 << 20, **place)
    assert keep.tolist() == decisions_one_by_one(probability, num_elements, 3 << 20, **place)


def test_keep_mask_does_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    def masks() -> Tensor:
        sample, token, first_block = torch.arange(7)[:, None], torch.arange(5), (torch.arange(7) << 20)[:, None]
        return keep_mask(0.3, 21, seed=1, stream=2, layer=0, sample=sample, token=token, first_block=first_block)

    whole = masks()
    monkeypatch.setattr(counter_rng, "CHUNK_COUNTERS_CPU", 10)
    assert torch.equal(masks(), whole)


def hidden_dropout(x: Tensor, probability: float = 0.1, **changes: object) -> Tensor:
    place: dict[str, object] = {
        "seed": 11,
        "stream": Stream.GENERATOR_DROPOUT,
        "layer": 1,
        "site": 0,
        "sample": torch.arange(x.shape[0])[:, None],
        "token": torch.arange(x.shape[1]),
    }
    return dropout(x, probability, **(place | changes))


def test_dropout_with_probability_zero_returns_its_input() -> None:
    x = torch.ones(2, 3, 5)
    assert hidden_dropout(x, 0.0) is x


@pytest.mark.parametrize("probability", [0.1, 1 / 3, 0.75])
def test_dropout_drops_at_its_rate_and_scales_by_the_exact_inverse(probability: float) -> None:
    x = torch.ones(40, 50, 100, dtype=torch.float64)
    dropped = hidden_dropout(x, probability)
    rate = round(probability * 65536) / 65536
    assert set(dropped.unique().tolist()) == {0.0, 1 / (1 - rate)}
    spread = (rate * (1 - rate) / x.numel()) ** 0.5
    assert abs(float((dropped == 0).double().mean()) - rate) < 5 * spread
    for axis in range(3):  # no row, token or feature is dropped more than others
        others = tuple(set(range(3)) - {axis})
        rates = (dropped == 0).double().mean(dim=others)
        assert float((rates - rate).abs().max()) < 6 * spread * x.shape[axis] ** 0.5


def test_dropout_rounds_bfloat16_once() -> None:
    x = torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    dropped = hidden_dropout(x)
    kept = dropped != 0
    assert torch.equal(dropped[kept], (x.float() * keep_scale(0.1)).bfloat16()[kept])


def test_dropout_gradient_is_its_mask_scaled() -> None:
    x = torch.ones(3, 4, 9, dtype=torch.float64, requires_grad=True)
    dropped = hidden_dropout(x, 0.5)
    grad_output = torch.randn(3, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (grad,) = torch.autograd.grad(dropped, x, grad_output)
    assert torch.equal(grad, grad_output * dropped.detach())


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 12},
        {"seed": 11 + 2**32},
        {"stream": Stream.DISCRIMINATOR_DROPOUT},
        {"layer": 2},
        {"site": 1},
        {"sample": torch.arange(4)[:, None] + 2**32},
        {"sample": torch.arange(4)[:, None] + 4},
        {"token": torch.arange(8) + 8},
    ],
)
def test_dropout_differs_with_everything_that_names_it(change: dict[str, object]) -> None:
    x = torch.ones(4, 8, 32)
    agreement = ((hidden_dropout(x, 0.5) == 0) == (hidden_dropout(x, 0.5, **change) == 0)).double().mean()
    assert abs(float(agreement) - 0.5) < 5 * 0.5 / x.numel() ** 0.5


def test_dropout_of_a_sample_does_not_depend_on_its_batch() -> None:
    x = torch.ones(6, 7, 20)
    whole = hidden_dropout(x)
    order = torch.tensor([4, 0, 5])
    assert torch.equal(hidden_dropout(x[order], sample=order[:, None]), whole[order])
    tail = hidden_dropout(x[:, 3:, :13], token=torch.arange(3, 7))
    assert torch.equal(tail, whole[:, 3:, :13])
    packed_token = torch.arange(7).repeat(2)
    packed = hidden_dropout(torch.ones(1, 14, 20), sample=torch.tensor([[2] * 7 + [5] * 7]), token=packed_token)
    assert torch.equal(packed[0], torch.cat([whole[2], whole[5]]))


def test_dropout_takes_plain_integers_for_rows_without_samples() -> None:
    table = torch.ones(16, 24)
    place = {"seed": 1, "stream": Stream.GENERATOR_REL_DROPOUT, "layer": 0, "site": 0, "token": torch.arange(16)}
    first, again, next_step = (dropout(table, 0.5, sample=step, **place) for step in (100, 100, 101))
    assert torch.equal(first, again)
    assert not torch.equal(first, next_step)


def test_streams_are_distinct_and_fit_their_eight_bits() -> None:
    assert len({int(stream) for stream in Stream}) == len(Stream.__members__)
    assert all(0 <= stream < 256 for stream in Stream)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probability": 1.0}, r"dropout probability 1.0 is not in \[0, 1\)"),
        ({"probability": -0.1}, "dropout probability -0.1"),
        ({"probability": float("nan")}, "dropout probability nan"),
        ({"site": 256}, "dropout site 256 is outside 0..255"),
        ({"layer": 256}, "layer 256: each must be in 0..255"),
        ({"stream": -1}, "stream -1"),
        ({"seed": 2**64}, "is not a 64-bit number"),
    ],
)
def test_bad_arguments_are_named_in_one_line(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        hidden_dropout(torch.ones(2, 2, 8), **change)
    assert "\n" not in str(error.value)


def test_counter_rng_and_attention_import_without_triton() -> None:
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import disentangled.kernels.counter_rng, disentangled.kernels.disentangled_attention"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.requires_gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_random_numbers_on_a_gpu_equal_those_on_the_cpu() -> None:
    places = {"sample": torch.arange(11)[:, None] + 2**33, "token": torch.arange(50), "element": 3}
    on_gpu = {name: place.cuda() if isinstance(place, Tensor) else place for name, place in places.items()}
    assert torch.equal(random_words(7, 1, **on_gpu).cpu(), random_words(7, 1, **places))
    x = torch.ones(11, 50, 37)
    assert torch.equal(
        hidden_dropout(x.cuda(), sample=on_gpu["sample"], token=on_gpu["token"]).cpu(),
        hidden_dropout(x, sample=places["sample"], token=places["token"]),
    )
