"""Exact match and F1: against what the official scripts printed, by hand, and against plain loops.

``squad_predictions.json`` holds answers of our own invention (none is of SQuAD), predictions made from them by words
added, lost, turned round or replaced, and the output of evaluate-v1.1.py and evaluate-v2.0.py for these.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reference
from contraprune.tasks.squad_metrics import f1, normalise, squad_v1, squad_v2

PIECES = ["the", "The", "a", "an", "Denver", "denver", "Broncos", "24–10", "a–b", ".", "U.S.", "'", "ä", "  ", "\t", ""]
texts = st.lists(st.sampled_from(PIECES), max_size=5).map(" ".join)
several = st.lists(texts, min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("The  Denver\nBroncos!", "denver broncos"),
        ("A man, an hour, the theatre", "man hour theatre"),
        ("Levi's U.S. stadium", "levis us stadium"),
        ("24–10", "24–10"),  # punctuation beyond ASCII stays
        ("vitamin a–b", "vitamin –b"),  # but ends a word
        ("the", ""),
    ],
)
def test_normalised_by_hand(answer, normal):
    assert normalise(answer) == normal


STORED = json.loads(Path(__file__).with_name("squad_predictions.json").read_text(encoding="utf-8"))


def test_version_1_gives_the_numbers_of_the_official_script():
    stored = STORED["version_1.1"]
    rows = stored["predictions"]
    found = squad_v1([row["answer"] for row in rows], [row["truths"] for row in rows])
    assert {name: 100 * value for name, value in found.items()} == pytest.approx(stored["official"])


@pytest.mark.parametrize("threshold", STORED["version_2.0"]["official_at_threshold"])
def test_version_2_gives_the_numbers_of_the_official_script(threshold):
    rows = STORED["version_2.0"]["predictions"]
    margins = np.array([row["null_margin"] for row in rows])
    answers, truths = [row["answer"] for row in rows], [row["truths"] for row in rows]
    found = squad_v2(answers, truths, margins, null_threshold=float(threshold))
    official = STORED["version_2.0"]["official_at_threshold"][threshold]
    assert {name.replace("exact_match", "exact"): 100 * value for name, value in found.items()} == pytest.approx(
        official
    )


def test_version_1_by_hand():
    """Words shared: 2 of 5 and 3 with the first truth, 2 of 5 and 2 with the second; the best truth counts."""
    answers = ["the Denver Broncos.", "Levi's Stadium in Santa Clara", "", "Carolina Panthers"]
    truths = [["Denver Broncos"], ["Santa Clara, California", "Levi's Stadium"], ["1963"], ["Denver Broncos"]]
    assert squad_v1(answers, truths) == {"exact_match": 1 / 4, "f1": pytest.approx((1 + 4 / 7) / 4)}
    assert f1(answers[1], truths[1][0]) == 0.5


def test_version_2_by_hand():
    answers = ["Denver Broncos", "in 1963", "Levi's Stadium", "Panthers"]
    truths = [["the Denver Broncos"], ["1963", "20 May 1963"], [], []]
    margins = np.array([-5.0, 3.0, 2.0, -1.0])
    found = squad_v2(answers, truths, margins, null_threshold=0.0)
    assert found == {
        "exact_match": 2 / 4,  # the first is right, no answer to the second is wrong, to the third right
        "f1": 2 / 4,
        "HasAns_exact_match": 1 / 2,
        "HasAns_f1": 1 / 2,
        "NoAns_exact_match": 1 / 2,
        "NoAns_f1": 1 / 2,
        "best_exact_match": 3 / 4,  # with a threshold from -5 to -1: all but the second
        "best_f1": 3 / 4,
    }
    generous = squad_v2(answers, truths, margins, null_threshold=3.0)
    assert (generous["exact_match"], generous["NoAns_f1"]) == (1 / 4, 0.0)
    assert generous["f1"] == pytest.approx((1 + 2 / 3) / 4)


def test_groups_that_are_empty_are_left_out():
    found = squad_v2(["x"], [["x"]], np.zeros(1), null_threshold=0.0)
    assert found == dict.fromkeys(
        ("exact_match", "f1", "HasAns_exact_match", "HasAns_f1", "best_exact_match", "best_f1"), 1.0
    )


def test_equal_margins_are_accepted_one_by_one_as_in_the_official_script():
    found = squad_v2(["x", "y"], [["x"], []], np.zeros(2), null_threshold=0.0)
    assert found["best_f1"] == 1.0  # after the first of both
    turned = squad_v2(["y", "x"], [[], ["x"]], np.zeros(2), null_threshold=0.0)
    assert turned["best_f1"] == 0.5


@given(rows=st.lists(st.tuples(texts, several), min_size=1, max_size=6))
def test_version_1_against_loops(rows):
    answers, truths = zip(*rows, strict=True)
    expected = np.mean(reference.squad_scores(answers, truths, version=1), axis=0)
    found = squad_v1(answers, truths)
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(expected))


@given(
    rows=st.lists(st.tuples(texts, st.lists(texts, max_size=2), st.integers(-9, 9)), min_size=1, max_size=6),
    threshold=st.integers(-9, 9),
)
def test_version_2_against_loops(rows, threshold):
    answers, truths, margins = zip(*rows, strict=True)
    margins = np.array(margins, dtype=float)
    given_answers = ["" if margin > threshold else answer for answer, margin in zip(answers, margins, strict=True)]
    raw = reference.squad_scores(answers, truths, version=2)
    scores = [
        score if kept or margin <= threshold else ((0.0, 0.0) if truth else (1.0, 1.0))
        for kept, score, margin, truth in zip(given_answers, raw, margins, truths, strict=True)
    ]
    found = squad_v2(answers, truths, margins, null_threshold=threshold)
    assert (found["exact_match"], found["f1"]) == pytest.approx(tuple(np.mean(scores, axis=0)))
    for group, wanted in (("HasAns", True), ("NoAns", False)):
        of_group = [score for score, truth in zip(scores, truths, strict=True) if bool(truth) == wanted]
        if of_group:
            expected = tuple(np.mean(of_group, axis=0))
            assert (found[f"{group}_exact_match"], found[f"{group}_f1"]) == pytest.approx(expected)


@given(
    rows=st.lists(
        st.tuples(
            st.sampled_from(["x", "x y", "z"]),
            st.lists(st.sampled_from(["x", "y"]), max_size=2),
            st.integers(-99, 99),
        ),
        min_size=1,
        max_size=7,
        unique_by=lambda row: row[2],
    )
)
def test_the_best_threshold_is_found(rows):
    """Every threshold there is tried, each with all that it decides."""
    answers, truths, margins = zip(*rows, strict=True)
    tried = [
        squad_v2(answers, truths, np.array(margins, dtype=float), null_threshold=threshold)
        for threshold in (-100, *margins)
    ]
    for name in ("exact_match", "f1"):
        assert tried[0][f"best_{name}"] == pytest.approx(max(scores[name] for scores in tried))
