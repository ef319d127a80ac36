from pathlib import Path

import sentencepiece

from disentangled.data_prep.shard_schema import TOKENIZER_NAME, load_manifest
from disentangled.trainer.word_starts import word_start_table


def test_table_marks_the_first_piece_of_every_word(shards: Path) -> None:
    manifest = load_manifest(shards)
    table = word_start_table(shards / TOKENIZER_NAME, manifest.vocab_size)
    assert table.shape == (manifest.vocab_size,)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(shards / TOKENIZER_NAME))
    ids = pieces.encode("several ordinary words, antidisestablishmentarianism")
    texts = [pieces.id_to_piece(index) for index in ids]
    assert [bool(table[index]) for index in ids] == [text.startswith("\u2581") for text in texts]
    assert sum(table[index] for index in ids) == 4 < len(ids)


def test_ids_that_are_no_pieces_of_text_begin_words(shards: Path) -> None:
    manifest = load_manifest(shards)
    table = word_start_table(shards / TOKENIZER_NAME, manifest.vocab_size)
    special = manifest.special_ids
    assert table[[special.pad, special.cls, special.sep, special.unk, special.mask]].all()
    assert table[manifest.num_pieces :].all()
