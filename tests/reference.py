"""Slow and obvious versions, in plain loops, that the fast code is compared with."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from contraprune.schedules import Moment

# The last moment of a run, at which every schedule is at its end.
END = Moment(step=10, total=10, warmup=1, cooldown=3, last=True)


def cubic(step, total_steps, *, warmup_steps, initial, final, initial_warmup, final_warmup):
    """The cubic threshold, from the number of steps in each of its three phases."""
    first_phase, last_phase = initial_warmup * warmup_steps, final_warmup * warmup_steps
    if step <= first_phase:
        return initial
    steps_left = total_steps - last_phase - step
    if steps_left < 0:
        return final
    return final + (initial - final) * (steps_left / (total_steps - first_phase - last_phase)) ** 3


def keep_largest(scores: Sequence[float], count: int) -> list[bool]:
    """Sort everything, largest first and earlier ones first among equals; keep the first ``count``."""
    best_first = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    kept = set(best_first[:count])
    return [index in kept for index in range(len(scores))]


def remove_lowest(importance, alive, count, *, keep_at_least):
    """One unit at a time: the lowest living one of the layers that can spare one; None when there is none."""
    alive = [[bool(unit) for unit in layer] for layer in alive]
    for _ in range(count):
        spare = [
            (importance[layer][unit], layer, unit)
            for layer in range(len(alive))
            for unit in range(len(alive[layer]))
            if alive[layer][unit] and sum(alive[layer]) > keep_at_least
        ]
        if not spare:
            return None
        _, layer, unit = min(spare)
        alive[layer][unit] = False
    return alive


def remove_lowest_by_groups(importance, alive, count, *, keep_at_least, divisor):
    """One group at a time, that of lowest mean; of all moments on the way the first that is nearest to ``count``."""
    alive = [[bool(unit) for unit in layer] for layer in alive]
    moments = [(count, alive)]
    while True:
        spare = []
        for layer, flags in enumerate(alive):
            left = sorted((importance[layer][unit], unit) for unit in range(len(flags)) if flags[unit])
            group = left[: len(left) % divisor or divisor]
            if left and len(left) - len(group) >= keep_at_least:
                spare.append((sum(value for value, _ in group) / len(group), layer, [unit for _, unit in group]))
        if not spare:
            return min(moments, key=lambda moment: moment[0])[1]
        _, layer, group = min(spare)
        alive = [[flag and (row != layer or unit not in group) for unit, flag in enumerate(flags)]
                 for row, flags in enumerate(alive)]  # fmt: skip
        gone = sum(map(sum, moments[0][1])) - sum(map(sum, alive))
        moments.append((abs(gone - count), alive))


def contrastive_terms(
    anchors: Tensor,
    ids: Tensor,
    labels: Tensor | None,
    rows: Tensor,
    row_ids: Tensor,
    row_labels: Tensor | None,
    *,
    temperature: float,
    normalization: str,
) -> tuple[Tensor, Tensor]:
    """(unsupervised, supervised), one anchor and one candidate at a time. Differentiable."""
    z = [anchor / anchor.square().sum().sqrt() for anchor in anchors]
    candidates = [anchor.detach() for anchor in z] + list(rows)

    def term(own: list[int], others: list[int]) -> Tensor:
        keys = own + others
        anchor_losses, nonzero_pairs = [], 0
        for i in range(len(z)):
            others_of_i = [j for j in range(len(candidates)) if j != i]
            exponentials = {j: (z[i] @ candidates[j] / temperature).exp() for j in others_of_i}
            losses = [-(exponentials[j] / sum(exponentials.values())).log() for j in others_of_i if keys[j] == own[i]]
            nonzero_pairs += sum(loss.item() != 0 for loss in losses)
            if losses:
                anchor_losses.append(sum(losses) / len(losses))
        divisor = len(anchor_losses) if normalization == "supcon" else nonzero_pairs
        return sum(anchor_losses) / divisor if divisor else torch.zeros(())

    unsupervised = term(ids.tolist(), row_ids.tolist())
    supervised = torch.zeros(()) if labels is None else term(labels.tolist(), row_labels.tolist())
    return unsupervised, supervised


def distillation(student: Sequence[Sequence[float]], teacher: Sequence[Sequence[float]], temperature: float):
    """T² times the mean over the batch of Σ p_teacher · log(p_teacher / p_student)."""

    def softmax(logits: Sequence[float]) -> list[float]:
        exponentials = [math.exp(logit / temperature) for logit in logits]
        return [value / sum(exponentials) for value in exponentials]

    divergences = [
        sum(t * math.log(t / s) for s, t in zip(softmax(one), softmax(other), strict=True))
        for one, other in zip(student, teacher, strict=True)
    ]
    return temperature**2 * sum(divergences) / len(divergences)


def golden_bert(golden: Path, name: str) -> BertForSequenceClassification:
    """The golden 2-layer BERT ``student`` or ``teacher``, unmasked, in eval mode."""
    model = BertForSequenceClassification(BertConfig.from_pretrained(golden / "tiny_bert_config.json"))
    weights = load_file(golden / f"tiny_bert_{name}.safetensors")
    for extra in ("head_mask", "intermediate_mask", "bert.embeddings.position_ids"):
        weights.pop(extra, None)
    model.load_state_dict(weights)
    return model.eval()


def squad_words(answer: str) -> list[str]:
    """The words of an answer as SQuAD's official scripts compare them, one character at a time."""
    kept = [character for character in answer.lower() if character not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"]
    runs: list[str] = []
    for character in kept:
        if runs and runs[-1][-1].isalnum() and character.isalnum():
            runs[-1] += character
        else:
            runs.append(character)
    return "".join(" " if run in ("a", "an", "the") else run for run in runs).split()


def squad_f1(answer: str, truth: str, *, empty_is_right: bool) -> float:
    """F1 of two bags of words; version 2 also compares bags without words."""
    words, left = squad_words(answer), squad_words(truth)
    if empty_is_right and (not words or not left):
        return float(words == left)
    size, shared = len(words) + len(left), 0
    for word in words:
        if word in left:
            left.remove(word)
            shared += 1
    return 2 * shared / size if shared else 0.0


def squad_scores(answers: Sequence[str], truths: Sequence[Sequence[str]], *, version: int):
    """(exact match, F1) of each question; in version 2 an unanswerable one has the empty truth."""
    scores = []
    for answer, known in zip(answers, truths, strict=True):
        right = list(known)
        if version == 2:
            right = [truth for truth in known if squad_words(truth)] or [""]
        exact = max(float(squad_words(answer) == squad_words(truth)) for truth in right)
        scores.append((exact, max(squad_f1(answer, truth, empty_is_right=version == 2) for truth in right)))
    return scores


def best_span(start_logits, end_logits, context, *, n_best, max_answer_length):
    """(start, end, score) by trying every pair of tokens ``context`` (a range) has; None where it has none."""
    starts, ends = (
        sorted(context, key=lambda token: (-logits[token], token))[:n_best] for logits in (start_logits, end_logits)
    )
    best = None
    for start in context:
        for end in context:
            if start in starts and end in ends and start <= end < start + max_answer_length:
                score = float(start_logits[start]) + float(end_logits[end])
                if best is None or score > best[2]:
                    best = (start, end, score)
    return best


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, last word) of the entities that tags such as B-PER mark, one tag at a time.

    As conlleval of CoNLL-2003 counts: an I (or E) goes on with an entity of its kind, and begins one where there is
    none. S and E (BILOU: U and L) end theirs.
    """
    found, start, kind, previous = set(), None, None, "O"
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, kind_here = tag.partition("-")
        goes_on = start is not None and prefix in ("I", "E", "L") and kind_here == kind and previous in ("B", "I")
        if start is not None and not goes_on:
            found.add((kind, start, place - 1))
            start = None
        if prefix != "O" and start is None:
            start, kind = place, kind_here
        previous = prefix
    return found


def entity_scores(right: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of entities with the right kind and extent, and the accuracy of single tags."""
    hits = expected = marked = 0
    for one, other in zip(right, predicted, strict=True):
        hits += len(entities(one) & entities(other))
        expected += len(entities(one))
        marked += len(entities(other))
    precision, recall = hits / marked if marked else 0.0, hits / expected if expected else 0.0
    f1 = 2 * precision * recall / (precision + recall) if hits else 0.0
    pairs = [pair for rows in zip(right, predicted, strict=True) for pair in zip(*rows, strict=True)]
    accuracy = sum(one == other for one, other in pairs) / len(pairs)
    return {"f1": f1, "precision": precision, "recall": recall, "accuracy": accuracy}


def f1(pairs: Sequence[tuple[bool, bool]]) -> float:
    """F1 of (right, predicted) decisions; zero where there is nothing to find or nothing was found."""
    hits = sum(right and predicted for right, predicted in pairs)
    return 2 * hits / (sum(right for right, _ in pairs) + sum(predicted for _, predicted in pairs)) if hits else 0.0


def average_precision(pairs: Sequence[tuple[bool, float]]) -> float:
    """The precision at each threshold of (right, score), weighted by the recall gained there."""
    total, gained, before = sum(right for right, _ in pairs), 0.0, 0
    for threshold in sorted({score for _, score in pairs}, reverse=True):
        chosen = [right for right, score in pairs if score >= threshold]
        gained += (sum(chosen) - before) * sum(chosen) / len(chosen)
        before = sum(chosen)
    return gained / total
