"""split.py: the split follows the text and the seed, and nothing else."""

import numpy as np

from disentangled.data_prep.split import raise_to_floor, split_hash, validation_threshold
from tests.data_prep.tiny_corpus import is_validation, make_documents


def draw_split(texts: list[str], seed: int, fraction: float) -> dict[str, bool]:
    return {text: is_validation(text, seed, fraction) for text in texts}


def test_split_does_not_depend_on_order_or_company():
    texts = make_documents(300)
    whole = draw_split(texts, 1, 0.3)
    assert draw_split(texts[::-1], 1, 0.3) == whole
    assert draw_split(texts[50:80], 1, 0.3) == {text: whole[text] for text in texts[50:80]}


def test_split_share_is_the_fraction():
    texts = [f"document {index}" for index in range(20_000)]
    share = sum(draw_split(texts, 1, 0.05).values()) / len(texts)
    # five standard deviations of a binomial share
    assert abs(share - 0.05) < 5 * (0.05 * 0.95 / len(texts)) ** 0.5


def test_split_grows_with_the_fraction():
    texts = make_documents(300)
    small, large = draw_split(texts, 1, 0.1), draw_split(texts, 1, 0.4)
    assert all(large[text] for text in texts if small[text])
    assert sum(large.values()) > sum(small.values())


def test_split_changes_with_the_seed():
    texts = make_documents(300)
    assert draw_split(texts, 1, 0.3) != draw_split(texts, 2, 0.3)


def test_split_of_a_known_document_stays():
    # the hash is part of the format: a change would move documents between the splits of rebuilt datasets
    texts = [f"document {index}" for index in range(12)]
    assert [int(drawn) for drawn in draw_split(texts, 1, 0.5).values()] == [0, 0, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0]


def test_floor_gives_as_many_different_documents_and_no_fewer_than_the_fraction():
    hashes = sorted({split_hash(text.encode(), 1) for text in make_documents(300)})
    smallest = np.array(hashes[:20], dtype=np.uint64)
    assert sum(drawn < raise_to_floor(0, 20, smallest) for drawn in hashes) == 20
    assert sum(drawn < raise_to_floor(0, 7, smallest) for drawn in hashes) == 7
    large = validation_threshold(0.5)
    assert raise_to_floor(large, 7, smallest) == large
    assert raise_to_floor(large, 7, smallest[:0]) == large


def test_floor_above_the_source_takes_all_of_it():
    hashes = np.array([3, 5, (1 << 64) - 2], dtype=np.uint64)
    assert all(int(drawn) < raise_to_floor(0, 1000, hashes) for drawn in hashes)
