"""Which split a document belongs to: a pure function of its text and the seed.

Neither file order, nor the place of a document, nor what is added later moves it, and exact copies of a document fall
on the same side, so no validation document is also trained on word for word.

Used by: build_corpus.py. Tested by: tests/data_prep/test_split.py. Not here: near-duplicates.
"""

import xxhash


def assign_to_validation(text: bytes, seed: int, validation_fraction: float) -> bool:
    """Return whether a document, in UTF-8, is a validation document: xxh3_64(text, seed) < fraction * 2**64."""
    return xxhash.xxh3_64_intdigest(text, seed=seed) < int(validation_fraction * 2.0**64)
