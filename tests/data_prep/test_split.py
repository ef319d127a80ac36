"""split.py: the split follows the text and the seed, and nothing else."""

from disentangled.data_prep.split import assign_to_validation
from tests.data_prep.tiny_corpus import make_documents


def draw_split(texts: list[str], seed: int, fraction: float) -> dict[str, bool]:
    return {text: assign_to_validation(text.encode(), seed, fraction) for text in texts}


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
