"""A tag for each word: the first piece of a word carries its tag, the others and the spaces between carry none.

Words are joined by single spaces and encoded as running text, so that any fast tokenizer sees what it saw in
pre-training. A sentence longer than the model reads is cut between words and put together again for scoring: no word is
lost. A word without pieces (a lone control character) is tagged `O`.
Used by: kinds.py. Tested by tests/finetune/test_tags.py.
Not here: reading (read_conll.py), scores (entity_scores.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification, PreTrainedTokenizerBase

from disentangled.finetune.entity_scores import find_entities, score_entities
from disentangled.finetune.labels import unknown_label

Rows = list[dict[str, Any]]
IGNORED = -100  # what torch's cross-entropy passes over
OUTSIDE = "O"


@dataclass(frozen=True)
class Tags:
    """Sequence labelling with these tags, in the order of the head's outputs."""

    labels: tuple[str, ...]
    auto_class: type = AutoModelForTokenClassification

    def head_settings(self) -> dict[str, Any]:
        """A tag an output."""
        names = dict(enumerate(self.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {label: index for index, label in names.items()},
        }

    def encode(self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> Dataset:
        """Parts of sentences, one or more an example: pieces, `labels`, and what decoding needs.

        Besides the model's inputs: `example` (its number), `words` and `first_pieces` (a word's number in the sentence,
        and the position of its first piece).

        Raises:
            ValueError: a tag that the training data does not have, or that is not IOB.
        """
        for place, tags in zip(examples["place"], examples["label"], strict=True):
            self._check_tags(place, tags)
        index = {label: number for number, label in enumerate(self.labels)}
        room = max_length_tokens - tokenizer.num_special_tokens_to_add()

        def encode_batch(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            parts = [
                (number, tags, start, part)
                for number, words, tags in zip(numbers, batch["words"], batch["label"], strict=True)
                for start, part in cut_words(words, tokenizer, room)
            ]
            windows = tokenizer(
                [" ".join(part) for *_, part in parts],
                truncation=True,
                max_length=max_length_tokens,
                return_offsets_mapping=True,
                return_special_tokens_mask=True,
            )
            offsets, special = windows.pop("offset_mapping"), windows.pop("special_tokens_mask")
            encoded: dict[str, list[Any]] = dict(windows)
            encoded |= {"labels": [], "example": [], "words": [], "first_pieces": []}
            for (number, tags, start, part), spans, is_special in zip(parts, offsets, special, strict=True):
                pieces = find_first_pieces(part, spans, is_special)
                row = [IGNORED] * len(spans)
                for word, piece in pieces.items():
                    row[piece] = index[tags[start + word]]
                encoded["labels"].append(row)
                encoded["example"].append(number)
                encoded["words"].append([start + word for word in pieces])
                encoded["first_pieces"].append(list(pieces.values()))
            return encoded

        return examples.map(encode_batch, batched=True, with_indices=True, remove_columns=examples.column_names)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads a batch and its labels to its longest row."""
        return DataCollatorForTokenClassification(tokenizer)

    def decode(self, logits: Any, encoded: Dataset, examples: Dataset) -> Rows:
        """A row a sentence: place, words, gold tags, predicted tags."""
        predicted = [[OUTSIDE] * len(words) for words in examples["words"]]
        columns = (encoded["example"], encoded["words"], encoded["first_pieces"])
        for scores, number, words, pieces in zip(logits, *columns, strict=True):
            for word, piece in zip(words, pieces, strict=True):
                predicted[number][word] = self.labels[int(np.argmax(scores[piece]))]
        names = ("place", "words", "label", "prediction")
        values = zip(examples["place"], examples["words"], examples["label"], predicted, strict=True)
        return [dict(zip(names, row, strict=True)) for row in values]

    def score(self, rows: Rows) -> dict[str, float]:
        """F1, precision and recall of entities."""
        return score_entities([row["label"] for row in rows], [row["prediction"] for row in rows])

    def _check_tags(self, place: str, tags: list[str]) -> None:
        for tag in tags:
            if tag not in self.labels:
                raise ValueError(unknown_label(place, tag, self.labels))
        try:
            find_entities(tags)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error


def cut_words(words: list[str], tokenizer: PreTrainedTokenizerBase, room_tokens: int) -> list[tuple[int, list[str]]]:
    """(number of the first word, words) of each part that fits; a word longer than that is a part of its own."""
    counts = [len(pieces) for pieces in tokenizer(words, add_special_tokens=False)["input_ids"]]
    parts: list[tuple[int, list[str]]] = [(0, [])]
    used = 0
    for number, (word, count) in enumerate(zip(words, counts, strict=True)):
        if parts[-1][1] and used + count > room_tokens:
            parts.append((number, []))
            used = 0
        parts[-1][1].append(word)
        used += count
    return parts


def find_first_pieces(words: list[str], spans: list[tuple[int, int]], is_special: list[int]) -> dict[int, int]:
    """The position of each word's first piece; words without one are absent.

    Args:
        spans: characters [start, end) of the pieces of the words joined by spaces.
    """
    found: dict[int, int] = {}
    ends, end = [], -1
    for text in words:
        end += 1 + len(text)
        ends.append(end)
    word = 0
    for position, (left, right) in enumerate(spans):
        if is_special[position] or right <= left:
            continue
        # a piece belongs to the word of its last character: a space before a word may be part of its first piece
        while word < len(words) and ends[word] < right:
            word += 1
        if word < len(words) and right > ends[word] - len(words[word]):
            found.setdefault(word, position)
    return found
