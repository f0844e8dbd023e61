"""Questions with their contexts as a model reads them: long contexts in overlapping windows."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.objectives import Span

OF_METRICS = ("question", "first", "char_starts", "char_ends")
"""Columns of windows that the search for answers needs (``tasks.spans.Windows``) and training does not."""


class WindowMaker:
    """Makes windows of rows with ``question``, ``context``, ``answers`` and ``idx``; called on batches of them.

    Args:
        max_length: tokens of a window, question and special tokens included.
        overlap: tokens of the context that two neighbouring windows share; None for a third of ``max_length``.
        of_metrics: whether to make the columns ``OF_METRICS``.

    Raises:
        UserError: the tokenizer has no character offsets, or windows of this length cannot overlap that much.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, max_length: int, overlap: int | None, of_metrics: bool
    ) -> None:
        if not tokenizer.is_fast:
            raise UserError(f"{tokenizer.name_or_path}: question answering needs a fast tokenizer (tokenizer.json)")
        third = max_length // 3
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.overlap = third if overlap is None else overlap
        self.question_limit = third - tokenizer.num_special_tokens_to_add(pair=True)
        self.of_metrics = of_metrics
        if self.question_limit < 1:
            raise UserError(f"--max_length {max_length}: expected room for a question and a part of its context")
        if self.overlap >= max_length - third:
            expected = f"expected less than {max_length - third} (two thirds of --max_length {max_length})"
            raise UserError(f"--doc_stride {self.overlap}: {expected}")

    def __call__(self, batch: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        encoded = self.tokenizer(
            [self._cut(question.lstrip()) for question in batch["question"]],
            list(batch["context"]),
            truncation="only_second",
            max_length=self.max_length,
            stride=self.overlap,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        offsets, samples = encoded.pop("offset_mapping"), encoded.pop("overflow_to_sample_mapping")
        spans = list(map(answer_span, batch["context"], batch["answers"]))
        columns: dict[str, list[Any]] = {name: [] for name in (*Span.targets, *(OF_METRICS if self.of_metrics else ()))}
        for window, sample in enumerate(samples):
            sequences = encoded.sequence_ids(window)
            tokens = sequences.count(1)
            first = sequences.index(1) if tokens else 0
            characters = np.array(offsets[window][first : first + tokens], dtype=np.int32).reshape(-1, 2)
            starts, ends = np.ascontiguousarray(characters.T)
            answer = tokens_of(spans[sample], starts, ends)
            positions = (0, 0) if answer is None else (first + answer[0], first + answer[1])
            of_window = (*positions, batch["idx"][sample], first, starts, ends)
            for values, value in zip(columns.values(), of_window, strict=False):
                values.append(value)
        return {**encoded, **columns, "length": [len(ids) for ids in encoded["input_ids"]]}

    def _cut(self, question: str) -> str:
        """The beginning of a question that leaves no room for the context; else all of it."""
        while len(question) > self.question_limit:
            read = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            if len(read) <= self.question_limit:
                break
            question = question[: min(read[self.question_limit][0], len(question) - 1)]
        return question


def answer_span(context: str, answers: Mapping[str, Sequence[Any]]) -> tuple[int, int] | None:
    """The characters of the first answer, without white space around it; None where there is no answer."""
    if not answers["text"]:
        return None
    start = answers["answer_start"][0]
    text = context[start : start + len(answers["text"][0])]
    start += len(text) - len(text.lstrip())
    return (start, start + len(text.strip())) if text.strip() else None


def tokens_of(span: tuple[int, int] | None, starts: Sequence[int], ends: Sequence[int]) -> tuple[int, int] | None:
    """First and last of the tokens, from ``starts`` to ``ends`` each, of a span of characters.

    None where they do not cover all of it, or where it lies between two of them.
    """
    if span is None or len(starts) == 0 or span[0] < starts[0] or span[1] > ends[-1]:
        return None
    first, last = bisect_right(ends, span[0]), bisect_left(starts, span[1]) - 1
    return (first, last) if first <= last else None
