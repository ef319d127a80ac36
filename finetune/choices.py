"""One of several answers: each is read with the context as a pair, and the highest score wins.

Used by: kinds.py. Tested by tests/finetune/test_choices.py.
Not here: reading (read_choices.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice, PreTrainedTokenizerBase

from disentangled.finetune.metrics import score_labels

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Choices:
    """Multiple choice; the head gives each choice a number."""

    auto_class: type = AutoModelForMultipleChoice

    def head_settings(self) -> dict[str, Any]:
        """Nothing: the head is the same for any number of choices."""
        return {}

    def encode(self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> Dataset:
        """Pieces of each choice, `[CLS] context [SEP] choice [SEP]`, the longer of both cut first, and `labels`."""

        def encode_batch(batch: dict[str, list[Any]]) -> dict[str, Any]:
            number = len(batch["choices"][0])
            contexts = [context for context in batch["context"] for _ in range(number)]
            choices = [choice for each in batch["choices"] for choice in each]
            encoded = tokenizer(contexts, choices, truncation=True, max_length=max_length_tokens)
            grouped = {
                name: [values[start : start + number] for start in range(0, len(values), number)]
                for name, values in encoded.items()
            }
            return grouped | {"labels": batch["label"]}

        return examples.map(encode_batch, batched=True, remove_columns=examples.column_names)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads all choices of a batch to the longest one."""
        return DataCollatorForMultipleChoice(tokenizer)

    def decode(self, logits: Any, encoded: Dataset, examples: Dataset) -> Rows:
        """A row an example: place, label, prediction, both as numbers of choices, and the scores."""
        values = np.asarray(logits, dtype=np.float64)
        names = ("place", "label", "prediction", "scores")
        columns = (examples["place"], examples["label"], values.argmax(1).tolist(), values.tolist())
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]

    def score(self, rows: Rows) -> dict[str, float]:
        """The share that is right."""
        gold, predicted = [str(row["label"]) for row in rows], [str(row["prediction"]) for row in rows]
        return score_labels(("accuracy",), gold, predicted, "0")
