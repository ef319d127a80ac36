import numpy as np
import pytest

from disentangled.trainer.hashing import GOLDEN, hash_words, mix, mix_32


def test_mix_is_the_finaliser_of_splitmix64() -> None:
    # the published generator's first outputs for seed 1234567
    with np.errstate(over="ignore"):
        states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * GOLDEN
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert mix(states).tolist() == expected


def test_mix_leaves_its_argument() -> None:
    values = np.arange(4, dtype=np.uint64)
    mix(values)
    assert values.tolist() == [0, 1, 2, 3]


def test_hash_words_broadcasts_and_minds_the_order() -> None:
    numbers = np.array([0, 1, 2**40])
    assert hash_words(7, numbers).shape == (3,)
    assert len(set(hash_words(7, numbers).tolist())) == 3
    assert hash_words(7, 1)[0] == hash_words(7, numbers)[1]
    assert hash_words(1, 7)[0] != hash_words(7, 1)[0]
    assert hash_words((1 << 63) + 5, 0)[0] != hash_words(5, 0)[0]


@pytest.mark.parametrize("bit", [0, 13, 40, 63])
def test_hash_words_flips_half_the_bits(bit: int) -> None:
    numbers = np.arange(4096, dtype=np.uint64)
    changed = hash_words(1, numbers) ^ hash_words(1, numbers ^ (np.uint64(1) << np.uint64(bit)))
    flipped = np.unpackbits(changed.view(np.uint8)).mean()
    assert flipped == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(4096 * 64))


def test_mix_32_is_murmurs_finaliser() -> None:
    # fmix32 as published; 0 is its one fixed point
    assert mix_32(np.array([0, 1, 0xDEADBEEF], dtype=np.uint32)).tolist() == [0, 0x514E28B7, 0x0DE5C6A9]
