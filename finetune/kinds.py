"""The kinds of tasks behind one face: what training and evaluation ask of each.

Used by: read_task.py, run_task.py. Tested by tests/finetune/test_overfit.py.
Not here: the kinds themselves (sequences.py, choices.py, spans.py, tags.py).
"""

from typing import Any, Protocol

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from disentangled.finetune.choices import Choices
from disentangled.finetune.labels import sorted_labels
from disentangled.finetune.sequences import Sequences
from disentangled.finetune.spans import Spans
from disentangled.finetune.tags import Tags
from disentangled.finetune.tasks import Task

Rows = list[dict[str, Any]]


class Kind(Protocol):
    """Encoding, head, predictions and scores of a kind of task."""

    @property
    def auto_class(self) -> Any:
        """The transformers Auto class whose models have the head."""

    def head_settings(self) -> dict[str, Any]:
        """What the model's config says about the head."""

    def encode(self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> Dataset:
        """What the model reads, with labels; ValueError for an example that cannot be learnt."""

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """What makes a batch of encoded rows."""

    def decode(self, logits: Any, encoded: Dataset, examples: Dataset) -> Rows:
        """A JSON row an example, with gold and prediction, from the logits of all encoded rows."""

    def score(self, rows: Rows) -> dict[str, float]:
        """The task's metrics of decoded rows, the one that chooses first."""


def make_kind(task: Task, train: Dataset) -> Kind:
    """The task's kind, with the labels of the training data where the task names none."""
    if task.kind == "spans":
        return Spans(task.has_unanswerable)
    if task.kind == "choice":
        return Choices()
    if task.kind == "tags":
        return Tags(sorted_labels(tag for tags in train["label"] for tag in tags))
    labels = () if task.regression else task.labels or sorted_labels(train["label"])
    return Sequences(labels, task.metrics)
