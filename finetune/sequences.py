"""One label or one number for a text or a pair of texts: encoding, head, predictions.

The head is the architecture's own for sequences, on the first token's last hidden state; a number is learnt by the mean
squared error (section 4.1.1 of arXiv 2111.09543 has classification and regression alike).
Used by: run_task.py. Tested by tests/finetune/test_metrics.py, test_overfit.py.
Not here: reading (read_sequences.py), training (run_task.py).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PreTrainedTokenizerBase

from disentangled.finetune.labels import label_ids
from disentangled.finetune.metrics import score_labels, score_numbers

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sequences:
    """A classification task's labels, or regression, and what is measured.

    Attributes:
        labels: in the order of the head's outputs; empty for regression.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    auto_class: type = AutoModelForSequenceClassification

    def head_settings(self) -> dict[str, Any]:
        """What the model's config says about the head."""
        if not self.labels:
            return {"num_labels": 1, "problem_type": "regression"}
        names = dict(enumerate(self.labels))
        return {
            "num_labels": len(names),
            "id2label": names,
            "label2id": {label: index for index, label in names.items()},
            "problem_type": "single_label_classification",
        }

    def encode(self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> Dataset:
        """Pieces and `labels`, a row an example; the longer of two texts is cut first."""

        def encode_batch(batch: dict[str, list[Any]]) -> dict[str, Any]:
            texts = [list(column) for column in zip(*batch["texts"], strict=True)]
            encoded = dict(tokenizer(*texts, truncation=True, max_length=max_length_tokens))
            encoded["labels"] = label_ids(batch, self.labels) if self.labels else batch["label"]
            return encoded

        return examples.map(encode_batch, batched=True, remove_columns=examples.column_names)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads a batch to its longest row."""
        return DataCollatorWithPadding(tokenizer)

    def decode(self, logits: Any, encoded: Dataset, examples: Dataset) -> Rows:
        """A row an example: place, label, prediction, and the probabilities of the labels."""
        values = np.asarray(logits, dtype=np.float64)
        gold = {"place": examples["place"], "label": examples["label"]}
        if not self.labels:
            return _rows(**gold, prediction=values.reshape(-1).tolist())
        powers = np.exp(values - values.max(1, keepdims=True))
        shares = (powers / powers.sum(1, keepdims=True)).tolist()
        predicted = [self.labels[index] for index in values.argmax(1)]
        return _rows(**gold, prediction=predicted, probabilities=shares)

    def score(self, rows: Rows) -> dict[str, float]:
        """The task's metrics of decoded rows."""
        gold, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
        if self.labels:
            return score_labels(self.metrics, gold, predicted, self.labels[-1])
        return score_numbers(self.metrics, gold, predicted)


def _rows(**columns: Any) -> Rows:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
