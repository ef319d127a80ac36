"""sample_text.py: bounded, uniform, in order, and a function of the corpus and the seed alone."""

import struct

import numpy as np
import pytest
import xxhash

from disentangled.data_prep.sample_text import MAX_LINE_CHARACTERS, TextSample
from tests.data_prep.tiny_corpus import make_documents


def draw_sample(documents: list[str], max_bytes: int, seed: int = 1) -> list[str]:
    sample = TextSample(max_bytes, seed)
    for row, document in enumerate(documents):
        sample.offer(document, (0, row, 0), 0)
    return sample.lines()


def test_sample_of_a_small_corpus_is_all_of_it_in_order():
    documents = make_documents()
    assert draw_sample(documents, 1 << 20) == [line for document in documents for line in document.split("\n")]


def test_sample_stays_within_its_bytes_and_nearly_fills_them():
    lines = draw_sample(make_documents(2000), 20_000)
    size = sum(len(line.encode()) for line in lines)
    assert 19_000 < size <= 20_000


def test_sample_is_repeatable_and_changes_with_the_seed():
    documents = make_documents(500)
    assert draw_sample(documents, 5000) == draw_sample(documents, 5000)
    assert draw_sample(documents, 5000) != draw_sample(documents, 5000, seed=2)


@pytest.mark.parametrize("max_bytes", [100, 3_000, 20_000])
def test_sample_is_the_smallest_hashes_that_fit_whatever_the_lengths(max_bytes: int):
    # long and short lines alike: a short one must not slip in after a long one with a smaller hash was turned away
    documents = [f"{index} " + "x" * (index * 37 % 400) for index in range(2000)]
    hashes = [xxhash.xxh3_64_intdigest(struct.pack("<QQQQ", 0, place, 0, 0), seed=1) for place in range(len(documents))]
    places = np.argsort(np.array(hashes, dtype=np.uint64))
    num_kept = int(np.searchsorted(np.cumsum([len(documents[place]) for place in places]), max_bytes, side="right"))
    assert draw_sample(documents, max_bytes) == [documents[place] for place in sorted(places[:num_kept])]


def test_sample_comes_from_everywhere():
    documents = [f"{index:06d}" for index in range(20_000)]
    places = np.array([int(line) for line in draw_sample(documents, 6 * 2000)])
    assert np.all(np.diff(places) > 0)
    share, _ = np.histogram(places, bins=4, range=(0, 20_000))
    # each quarter holds 500 of 2,000; five standard deviations of a binomial count are about 100
    assert np.all(np.abs(share - 500) < 100)


def test_sample_cuts_lines_that_the_trainer_would_drop():
    lines = draw_sample(["東" * 5000, " \t "], 1 << 20)
    assert "".join(lines) == "東" * 5000
    assert max(map(len, lines)) <= MAX_LINE_CHARACTERS
    assert max(len(line.encode()) for line in lines) <= 4192


@pytest.mark.parametrize("max_bytes", [10, 700, 5_000, 1 << 20])
@pytest.mark.parametrize("num_parts", [2, 7])
def test_samples_of_parts_add_up_to_the_sample_of_the_whole(max_bytes: int, num_parts: int):
    documents = [f"{index} " + "x" * (index * 37 % 400) for index in range(600)]
    parts = [TextSample(max_bytes, 1) for _ in range(num_parts)]
    for row, document in enumerate(documents):
        parts[row * num_parts // len(documents)].offer(document, (0, row, 0), 0)
    whole = TextSample(max_bytes, 1)
    for part in parts[::-1]:
        whole.absorb(part)
    assert whole.lines() == draw_sample(documents, max_bytes)


def test_sample_can_lose_documents_and_shrink():
    sample = TextSample(1 << 20, 1)
    for row, document in enumerate(make_documents(50)):
        sample.offer(document, (0, row, 0), row)
    sample.remove(lambda place, drawn: place[1] < 10 or drawn >= 40)
    assert sample.lines() == [line for document in make_documents(50)[10:40] for line in document.split("\n")]
    sample.shrink(1000)
    assert 0 < sample.num_bytes == sum(len(line.encode()) for line in sample.lines()) <= 1000


@pytest.mark.parametrize("max_bytes", [700, 1000, 1250])
def test_short_lines_of_one_part_do_not_fill_what_long_ones_of_another_left(max_bytes: int):
    documents = [f"{index:03d}" + "x" * (300 if index < 50 else 2) for index in range(100)]
    long, short = TextSample(max_bytes, 1), TextSample(max_bytes, 1)
    for row, document in enumerate(documents):
        (long if row < 50 else short).offer(document, (0, row, 0), 0)
    short.absorb(long)
    assert short.lines() == draw_sample(documents, max_bytes)
