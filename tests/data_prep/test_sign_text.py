"""sign_text.py: signatures estimate the Jaccard similarity of shingle sets, in any script, and bands miss little."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from disentangled.data_prep.sign_text import MAX_MISSED, NUM_HASHES, SHINGLE_BYTES, band_keys, band_shape, sign_texts


def shingles(text: str) -> set[bytes]:
    utf8 = "".join(text.lower().split()).encode()
    return {utf8[at : at + SHINGLE_BYTES] for at in range(len(utf8) - SHINGLE_BYTES + 1)}


@pytest.mark.parametrize(
    "letters", ["abcdefghij ", "\u6771\u4eac\u5927\u5b66\u65e5\u672c", "\u0430\u0431\u0432\u0433 "]
)
def test_equal_numbers_estimate_the_similarity(letters: str):
    draw = random.Random(0)
    errors = []
    for _ in range(60):
        text = draw.choices(letters, k=2000)
        other = text.copy()
        for _ in range(draw.randint(0, 30)):
            other[draw.randrange(len(other))] = draw.choice(letters)
        first, second = shingles("".join(text)), shingles("".join(other))
        jaccard = len(first & second) / len(first | second)
        signatures = sign_texts(["".join(text), "".join(other)])
        errors.append(np.mean(signatures[0] == signatures[1]) - jaccard)
    # binomial: at most 0.5 / sqrt(128) = 0.044 each; of 60, the mean lies within 4 * 0.044 / sqrt(60)
    assert abs(np.mean(errors)) < 4 * 0.5 / (NUM_HASHES * 60) ** 0.5
    assert np.std(errors) < 1.5 * 0.5 / NUM_HASHES**0.5


def test_case_and_white_space_make_no_difference_and_short_texts_differ():
    first, second, third, fourth = sign_texts(["One  Text\nof two lines", "one text of TWO lines", "a", "b"])
    assert np.array_equal(first, second)
    assert not np.any(third == fourth)
    assert sign_texts([]).shape == (0, NUM_HASHES)
    assert np.array_equal(sign_texts([""]), sign_texts([" \n"]))


def test_signatures_do_not_depend_on_company_or_the_number_of_threads():
    texts = ["some text that is long enough", "x" * 5000, "other"] * 50
    together = sign_texts(texts)
    assert np.array_equal(together, np.concatenate([sign_texts([text]) for text in texts]))
    script = (
        "import sys; from disentangled.data_prep.sign_text import sign_texts; print(sign_texts(sys.argv[1:]).tolist())"
    )
    root = Path(__file__).parents[2]
    for threads in ("1", "4"):
        environment = os.environ | {"RAYON_NUM_THREADS": threads}
        command = [sys.executable, "-c", script, *texts]
        printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=root).stdout
        assert printed.strip() == str(together.tolist())


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_bands_miss_few_pairs_at_the_threshold_and_are_as_long_as_that_allows(threshold: float):
    num_bands, length = band_shape(threshold)
    assert num_bands * length <= NUM_HASHES
    assert (1 - threshold**length) ** num_bands <= MAX_MISSED
    longer = length + 1
    assert longer > NUM_HASHES or (1 - threshold**longer) ** (NUM_HASHES // longer) > MAX_MISSED


def test_keys_are_equal_where_bands_are():
    signatures = np.random.default_rng(0).integers(0, 1 << 32, (40, NUM_HASHES)).astype(np.uint32)
    num_bands, length = band_shape(0.8)
    signatures[7, : 3 * length] = signatures[5, : 3 * length]
    signatures[7, 2 * length] ^= 1
    keys = band_keys(signatures, 0.8)
    assert keys.shape == (num_bands, 40)
    assert (keys[:, 7] == keys[:, 5]).tolist() == [True, True] + [False] * (num_bands - 2)
    assert len(np.unique(keys[2])) == 40
