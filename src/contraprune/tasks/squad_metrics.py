"""Exact match and F1 of answers as the official scripts of SQuAD define them, as fractions.

Sources: evaluate-v1.1.py (Rajpurkar et al. 2016, arXiv 1606.05250) and evaluate-v2.0.py (Rajpurkar et al. 2018,
arXiv 1806.03822). The two differ where nothing is left of an answer once it is normalised. No library that works
without network has both: torchmetrics has version 1.1 and fails on questions without an answer.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """In lower case, without ASCII punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def f1(answer: str, truth: str) -> float:
    """Harmonic mean of precision and recall over the words that both have, each as often as both have it."""
    words, true_words = normalise(answer).split(), normalise(truth).split()
    shared = sum((Counter(words) & Counter(true_words)).values())
    return 2 * shared / (len(words) + len(true_words)) if shared else 0.0


def squad_v1(answers: Sequence[str], truths: Sequence[Sequence[str]]) -> dict[str, float]:
    """``exact_match`` and ``f1`` of evaluate-v1.1.py.

    Args:
        answers: one per question.
        truths: the true answers of each question, at least one; the best match counts.
    """
    pairs = list(zip(answers, truths, strict=True))
    exact = [any(normalise(answer) == normalise(truth) for truth in known) for answer, known in pairs]
    overlap = [max(f1(answer, truth) for truth in known) for answer, known in pairs]
    return {"exact_match": float(np.mean(exact)), "f1": float(np.mean(overlap))}


def squad_v2(
    answers: Sequence[str],
    truths: Sequence[Sequence[str]],
    null_margins: Float[np.ndarray, " questions"],
    *,
    null_threshold: float,
) -> dict[str, float]:
    """The numbers of ``evaluate-v2.0.py DATA ANSWERS --na-prob-file MARGINS --na-prob-thresh THRESHOLD``.

    ``exact_match`` and ``f1`` of all questions (the script's ``exact`` and ``f1``), of those with an answer
    (``HasAns_``) and of those without (``NoAns_``), where there are such; and at the threshold that is best for
    these very questions (``best_``).

    Args:
        answers: the best answer of each question, also where giving none is better.
        truths: the true answers of each question; none where it cannot be answered.
        null_margins: by how much giving no answer scores above that best answer.
        null_threshold: no answer is given where the margin is greater.
    """
    answerable = np.array([bool(known) for known in truths])
    answered = np.array([answer != "" for answer in answers])
    matches = [_matches(answer, known) for answer, known in zip(answers, truths, strict=True)]
    raw = dict(zip(("exact_match", "f1"), np.array(matches).T, strict=True))
    scores = {name: np.where(null_margins > null_threshold, ~answerable, values) for name, values in raw.items()}
    groups = {"": np.ones_like(answerable), "HasAns_": answerable, "NoAns_": ~answerable}
    means = {
        f"{group}{name}": float(values[members].mean())
        for group, members in groups.items()
        if members.any()
        for name, values in scores.items()
    }
    best = {
        f"best_{name}": _at_best_threshold(values, null_margins, answerable, answered) for name, values in raw.items()
    }
    return means | best


def _matches(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1; an answer of which nothing is left matches no answer and nothing else."""
    words = normalise(answer)
    known = [truth for truth in truths if normalise(truth)] or [""]
    if not words or known == [""]:
        equal = float(any(words == normalise(truth) for truth in known))
        return equal, equal
    return float(any(words == normalise(truth) for truth in known)), max(f1(answer, truth) for truth in known)


def _at_best_threshold(
    raw: Float[np.ndarray, " questions"],
    null_margins: Float[np.ndarray, " questions"],
    answerable: np.ndarray,
    answered: np.ndarray,
) -> float:
    """The mean score at the best of all thresholds: answers are accepted one by one, the surest first."""
    change = np.where(answerable, raw, np.where(answered, -1.0, 0.0))
    totals = np.cumsum(change[np.argsort(null_margins, kind="stable")])
    return float(((~answerable).sum() + max(0.0, totals.max())) / len(raw))
