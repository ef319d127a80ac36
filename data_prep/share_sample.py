"""How many bytes of the tokenizer's sample each source gets: in proportion to weight * size ** alpha.

alpha 1 samples the text as it is, 0 every source alike; between them rare languages get more than their share and
frequent ones still most (arXiv 1911.02116 section 3.1 takes 0.3 for 100 languages). A source that has less
than its share gives what it has, and the others share the rest.

Used by: prepare_text.py. Tested by: tests/data_prep/test_share_sample.py.
"""

from collections.abc import Sequence


def share_bytes(
    total_bytes: int,
    source_bytes: Sequence[int],
    available_bytes: Sequence[int],
    weights: Sequence[float],
    alpha: float,
) -> list[int]:
    """Return the bytes for each source: never more than are available, together total_bytes where there are as many."""
    largest = max(source_bytes, default=0)
    scores = [
        weight * (size / largest) ** alpha if size else 0.0 for size, weight in zip(source_bytes, weights, strict=True)
    ]
    shares = [0] * len(scores)
    open_sources = [index for index, score in enumerate(scores) if score > 0]
    left = total_bytes
    while open_sources:
        sum_scores = sum(scores[index] for index in open_sources)
        exhausted = [i for i in open_sources if available_bytes[i] <= left * scores[i] / sum_scores]
        if not exhausted:
            for index in open_sources:
                shares[index] = int(left * scores[index] / sum_scores)
            break
        for index in exhausted:
            shares[index] = available_bytes[index]
        left -= sum(available_bytes[index] for index in exhausted)
        open_sources = [index for index in open_sources if index not in exhausted]
    return shares
