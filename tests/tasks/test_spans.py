"""The search for answers against all pairs of tokens."""

import time

import numpy as np
import pytest

import reference
from contraprune.tasks.spans import Answer, Windows, best_answers


def make(seed: int, *, questions: int, integers: bool) -> tuple[list[np.ndarray], Windows]:
    """Windows of random lengths, one to three per question; integer logits have many ties."""
    rng = np.random.default_rng(seed)
    logits, rows, first, starts, ends = [], [], [], [], []
    for question in range(questions):
        for _ in range(rng.integers(1, 4)):
            before, tokens, after = rng.integers(1, 4), rng.integers(0, 12), rng.integers(0, 2)
            shape = (before + tokens + after, 2)
            values = rng.integers(-2, 3, shape) if integers else rng.normal(size=shape)
            logits.append(values.astype(np.float32))
            rows.append(question)
            first.append(int(before))
            boundaries = np.sort(rng.choice(200, 2 * tokens, replace=False)).reshape(-1, 2)
            starts.append(boundaries[:, 0].tolist())
            ends.append(boundaries[:, 1].tolist())
    return logits, Windows(rows, first, starts, ends)


def one_by_one(logits, windows, questions, **limits):
    for question in range(questions):
        mine = [row for row, of in enumerate(windows.questions) if of == question]
        best = Answer(0, 0, -np.inf, min(float(logits[row][0, 0]) + float(logits[row][0, 1]) for row in mine))
        for row in mine:
            first = windows.first[row]
            context = range(first, first + len(windows.char_starts[row]))
            span = reference.best_span(logits[row][:, 0], logits[row][:, 1], context, **limits)
            if span is not None and span[2] > best.score:
                start, end = windows.char_starts[row][span[0] - first], windows.char_ends[row][span[1] - first]
                best = Answer(start, end, span[2], best.null_score)
        yield best


@pytest.mark.parametrize("integers", [True, False])
@pytest.mark.parametrize(("n_best", "max_answer_length"), [(20, 30), (20, 3), (3, 4), (1, 1), (2, 30)])
def test_against_all_pairs(integers, n_best, max_answer_length):
    limits = {"n_best": n_best, "max_answer_length": max_answer_length}
    for seed in range(20):
        logits, windows = make(seed, questions=5, integers=integers)
        found = best_answers(logits, windows, **limits)
        assert found == list(one_by_one(logits, windows, 5, **limits))


def test_ties_go_to_the_first_window_then_the_earliest_then_the_shortest_span():
    flat = np.zeros((4, 2), dtype=np.float32)
    windows = Windows([0, 0], [1, 1], [[0, 5, 9], [5, 9, 12]], [[4, 8, 11], [8, 11, 14]])
    assert best_answers([flat, flat], windows, n_best=20, max_answer_length=30) == [Answer(0, 4, 0.0, 0.0)]


def test_scores_of_all_windows_are_added_exactly():
    """In float32 both would be 16777216."""
    large = np.array([[0, 0], [2**24, 1], [2**24, 0]], dtype=np.float32)
    windows = Windows([0], [1], [[0, 2]], [[1, 3]])
    assert best_answers([large], windows, n_best=1, max_answer_length=9)[0].score == 2**24 + 1


def test_more_windows_than_are_worked_on_at_once_in_seconds():
    rng = np.random.default_rng(0)
    count, tokens = 10_000, 180
    logits = [rng.normal(size=(tokens + 10, 2)).astype(np.float32) for _ in range(count)]
    positions = list(range(tokens))
    windows = Windows(range(count), [10] * count, [positions] * count, [positions] * count)
    start = time.process_time()
    found = best_answers(logits, windows, n_best=20, max_answer_length=30)
    assert time.process_time() - start < 20
    for row in (0, 511, 512, 9_999):
        span = reference.best_span(*logits[row].T, range(10, tokens + 10), n_best=20, max_answer_length=30)
        assert found[row][:3] == (span[0] - 10, span[1] - 10, span[2])
