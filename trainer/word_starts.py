"""Which ids begin a word, as a table over the vocabulary.

What: SentencePiece writes the space before a word into its first piece, as U+2581; a piece that is nothing else, and a
special id, begin a word too. Nothing about words is stored in shards: a lookup finds them.
Used by: trainer/batch.py, train.py. Tested by: tests/trainer/test_word_starts.py.
"""

from pathlib import Path

import numpy as np
import sentencepiece
from numpy.typing import NDArray

WORD_START = "\u2581"


def word_start_table(tokenizer: Path, vocab_size: int) -> NDArray[np.bool_]:
    """[vocab_size] bool; ids that are no pieces begin words."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer))
    table = np.ones(vocab_size, dtype=bool)
    is_special = [pieces.is_control(i) or pieces.is_unknown(i) for i in range(len(pieces))]
    table[: len(pieces)] = [
        special or pieces.id_to_piece(i).startswith(WORD_START) for i, special in enumerate(is_special)
    ]
    return table
