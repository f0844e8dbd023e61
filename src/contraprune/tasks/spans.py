"""From start and end logits to answers: the best spans of a context that was read in overlapping windows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

_WINDOWS_AT_ONCE = 512


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """How contexts are cut to windows, and answers chosen. The flags of the same names.

    Attributes:
        doc_stride: tokens that two neighbouring windows share; None for a third of the maximal length.
        n_best: how many starts, and how many ends, of each window are candidates.
        max_answer_length: in tokens.
        null_threshold: where questions may have no answer, none is given if that scores better by more than this.
    """

    doc_stride: int | None = None
    n_best: int = 20
    max_answer_length: int = 30
    null_threshold: float = 0.0


class Windows(NamedTuple):
    """What of a data set of windows the search for answers needs; a row per window, those of a question together.

    Attributes:
        questions: index of the question (0 to q-1).
        first: position of the first token of the context.
        char_starts, char_ends: of each token of the context in the window, in characters of the whole context.
    """

    questions: Sequence[int]
    first: Sequence[int]
    char_starts: Sequence[Sequence[int]]
    char_ends: Sequence[Sequence[int]]


class Answer(NamedTuple):
    """The best answer to a question, from character ``start`` to ``end`` (exclusive) of its context.

    Attributes:
        score: the sum of both logits; minus infinity where there is nothing to choose.
        null_score: that of the first token, which stands for no answer; the least of all windows.
    """

    start: int
    end: int
    score: float
    null_score: float


def best_answers(
    logits: Sequence[Float[np.ndarray, "tokens 2"]], windows: Windows, *, n_best: int, max_answer_length: int
) -> list[Answer]:
    """The best answer to each question, in the order of the questions.

    Of every window, the ``n_best`` starts and ends in the context with the highest logits are combined to spans of
    1 to ``max_answer_length`` tokens. The highest sum of logits wins; of equal ones the first window's, then the
    one that starts first, then the shortest.
    """
    answers: dict[int, Answer] = {}
    found = best_spans(logits, windows, n_best=n_best, max_answer_length=max_answer_length)
    for row, (start, end, score) in enumerate(found):
        question = windows.questions[row]
        span = (windows.char_starts[row][start], windows.char_ends[row][end]) if score > -np.inf else (0, 0)
        here = Answer(*span, score, float(logits[row][0].astype(np.float64).sum()))
        before = answers.get(question, here)
        best = max(before, here, key=lambda answer: answer.score)
        answers[question] = best._replace(null_score=min(before.null_score, here.null_score))
    return [answers[question] for question in sorted(answers)]


def best_spans(
    logits: Sequence[Float[np.ndarray, "tokens 2"]], windows: Windows, *, n_best: int, max_answer_length: int
) -> Iterator[tuple[int, int, float]]:
    """Start, end (inclusive, counted from the context's first token) and score of each window's best span."""
    for begin in range(0, len(logits), _WINDOWS_AT_ONCE):
        rows = range(begin, min(begin + _WINDOWS_AT_ONCE, len(logits)))
        context = [logits[row][windows.first[row] : windows.first[row] + len(windows.char_starts[row])] for row in rows]
        padded = np.full((len(rows), max(1, *map(len, context)), 2), -np.inf)
        for row, values in enumerate(context):
            padded[row, : len(values)] = values
        starts, ends = (_highest(padded[..., side], n_best) for side in (0, 1))
        scores = (
            np.take_along_axis(padded[..., 0], starts, axis=1)[:, :, None]
            + np.take_along_axis(padded[..., 1], ends, axis=1)[:, None, :]
        )
        further = ends[:, None, :] - starts[:, :, None]
        scores[(further < 0) | (further >= max_answer_length)] = -np.inf
        for row, best in enumerate(scores.reshape(len(rows), -1).argmax(axis=1)):
            start, end = np.unravel_index(best, scores.shape[1:])
            yield int(starts[row, start]), int(ends[row, end]), float(scores[row, start, end])


def _highest(logits: Float[np.ndarray, "windows tokens"], count: int) -> Int[np.ndarray, "windows count"]:
    """Positions of the highest logits of each row, the first of equal ones; in ascending order."""
    return np.sort(np.argsort(-logits, axis=1, kind="stable")[:, :count], axis=1)
