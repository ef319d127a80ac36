"""Answers that are spans of a text: windows over long texts, the best valid span, no answer where that scores higher.

Encoding: `[CLS] question [SEP] window [SEP]`; windows overlap by `STRIDE_TOKENS`; a window that does not hold the whole
first answer learns [CLS], which also stands for "no answer". A question's prediction is the span of the highest start
plus end logit over all its windows, at most `MAX_ANSWER_TOKENS` long; with unanswerable questions it is empty where the
lowest [CLS] score of its windows is higher (section 4.3 of arXiv 1810.04805). With candidates (ReCoRD) only these are
looked at.
Used by: kinds.py. Tested by tests/finetune/test_spans.py.
Not here: reading (read_squad.py), scores (answer_scores.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, PreTrainedTokenizerBase

from disentangled.finetune.answer_scores import score_answers

Rows = list[dict[str, Any]]
Span = tuple[float, int, int]  # score, first and last piece

# The settings of BERT's SQuAD runs, scaled down with windows that are shorter than theirs
MAX_QUESTION_TOKENS = 64
STRIDE_TOKENS = 128
MAX_ANSWER_TOKENS = 30
NUM_BEST = 20  # starts and ends that are combined


@dataclass(frozen=True)
class Spans:
    """Span extraction; `has_unanswerable`: some questions have no answer."""

    has_unanswerable: bool
    auto_class: type = AutoModelForQuestionAnswering

    def head_settings(self) -> dict[str, Any]:
        """Two outputs a token: start and end."""
        return {"num_labels": 2}

    def encode(self, examples: Dataset, tokenizer: PreTrainedTokenizerBase, max_length_tokens: int) -> Dataset:
        """Windows, several an example: pieces, positions of the first answer, and what decoding needs.

        Besides the model's inputs: `example` (its number), `spans` (characters [start, end) of each piece of the
        context, [-1, -1] of all others).

        Raises:
            ValueError: the installed tokenizers loses windows.
        """
        check_windows(tokenizer)
        room = max_length_tokens - tokenizer.num_special_tokens_to_add(pair=True)
        question_tokens = min(MAX_QUESTION_TOKENS, room // 2)
        # a window must move on: half of what is left beside the longest question at most
        stride = min(STRIDE_TOKENS, (room - question_tokens) // 2)

        def encode_batch(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            questions = [cut_text(text, tokenizer, question_tokens) for text in batch["question"]]
            windows = tokenizer(
                questions,
                batch["context"],
                truncation="only_second",
                max_length=max_length_tokens,
                stride=stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            sources, offsets = windows.pop("overflow_to_sample_mapping"), windows.pop("offset_mapping")
            encoded: dict[str, list[Any]] = dict(windows)
            parts = [windows.sequence_ids(index) for index in range(len(offsets))]
            spans = [
                [list(span) if part == 1 else [-1, -1] for span, part in zip(*row, strict=True)]
                for row in zip(offsets, parts, strict=True)
            ]
            positions = [
                find_pieces(row, *_first_answer(batch, source)) for row, source in zip(spans, sources, strict=True)
            ]
            encoded["start_positions"], encoded["end_positions"] = (list(side) for side in zip(*positions, strict=True))
            encoded["example"], encoded["spans"] = [numbers[source] for source in sources], spans
            return encoded

        return examples.map(encode_batch, batched=True, with_indices=True, remove_columns=examples.column_names)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Any:
        """Pads a batch to its longest window."""
        return DataCollatorWithPadding(tokenizer)

    def decode(self, logits: Any, encoded: Dataset, examples: Dataset) -> Rows:
        """A row a question: id, gold answers, prediction, and by how much an answer beats none."""
        starts, ends = logits
        best: list[tuple[float, str]] = [(-np.inf, "")] * len(examples)
        none = [np.inf] * len(examples)
        contexts, candidates = examples["context"], examples["candidates"]
        for start, end, number, spans in zip(starts, ends, encoded["example"], encoded["spans"], strict=True):
            for score, first, last in self._find_spans(start, end, np.asarray(spans), candidates[number]):
                if score > best[number][0]:
                    best[number] = (score, contexts[number][spans[first][0] : spans[last][1]].strip())
            none[number] = min(none[number], float(start[0] + end[0]))
        rows = []
        for index, (name, gold) in enumerate(zip(examples["id"], examples["answers"], strict=True)):
            score, text = best[index]
            margin = score - none[index]
            answer = "" if self.has_unanswerable and margin <= 0 else text
            rows.append({"id": name, "answers": gold, "prediction": answer, "margin": max(float(margin), -1e9)})
        return rows

    def score(self, rows: Rows) -> dict[str, float]:
        """F1 and exact match."""
        return score_answers([row["answers"] for row in rows], [row["prediction"] for row in rows])

    def _find_spans(self, start: Any, end: Any, spans: Any, candidates: list[list[int]]) -> Iterator[Span]:
        """The valid spans of a window that may be its best."""
        if candidates:
            for span in candidates:
                first, last = find_pieces(spans.tolist(), *span)
                if (first, last) != (0, 0):
                    yield float(start[first] + end[last]), first, last
            return
        inside = np.flatnonzero(spans[:, 0] >= 0)
        first_best = inside[np.argsort(-start[inside], kind="stable")[:NUM_BEST]]
        last_best = inside[np.argsort(-end[inside], kind="stable")[:NUM_BEST]]
        for first in first_best:
            for last in last_best:
                if first <= last < first + MAX_ANSWER_TOKENS:
                    yield float(start[first] + end[last]), int(first), int(last)


def check_windows(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a library whose windows end before the text does, as those of tokenizers 0.23.1 and 0.23.2 do."""
    text = " ".join(["a"] * 40)
    room = 4 + tokenizer.num_special_tokens_to_add(pair=True)
    windows = tokenizer(
        "a", text, truncation="only_second", max_length=room, stride=1,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    if max(end for _, end in windows["offset_mapping"][-1]) < len(text):
        raise ValueError(
            f"tokenizers {version('tokenizers')} loses windows of long texts, whose ends would be neither learnt nor "
            "searched: install another, such as tokenizers==0.23.3"
        )


def cut_text(text: str, tokenizer: PreTrainedTokenizerBase, num_tokens: int) -> str:
    """The text up to its `num_tokens`-th piece, without spaces around it."""
    text = text.strip()
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text if len(offsets) <= num_tokens else text[: offsets[num_tokens - 1][1]]


def find_pieces(spans: list[list[int]], start: int, end: int) -> tuple[int, int]:
    """(first, last) piece of a window that characters [start, end) touch; (0, 0) where it does not hold them all.

    Args:
        spans: characters [start, end) of the window's pieces, [-1, -1] for those outside the context.
    """
    inside = [index for index, (left, _) in enumerate(spans) if left >= 0]
    touched = [index for index in inside if spans[index][0] < end and spans[index][1] > start]
    if not touched or start < spans[inside[0]][0] or end > spans[inside[-1]][1]:
        return 0, 0
    return touched[0], touched[-1]


def _first_answer(batch: dict[str, list[Any]], source: int) -> tuple[int, int]:
    """Characters [start, end) of an example's first answer; an empty range where it has none."""
    if not batch["answers"][source]:
        return 0, 0
    start = batch["starts"][source][0]
    return start, start + len(batch["answers"][source][0])
