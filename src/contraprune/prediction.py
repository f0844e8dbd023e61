"""What a model answers on the evaluation splits of its task, and how good that is."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from contraprune.encoding import features_of, longest_first, readable
from contraprune.errors import UserError
from contraprune.products import fast_products
from contraprune.progress import progress as tracked
from contraprune.tasks import Task
from contraprune.tasks.base import Collator


class Evaluation(NamedTuple):
    """Metrics by name, the mean loss against the targets, the seconds the forward passes took, and what they gave.

    ``outputs`` are those of :func:`predict`, by split.
    """

    metrics: dict[str, float]
    loss: float
    seconds: float
    outputs: dict[str, Sequence[np.ndarray]]


def evaluate(
    model: PreTrainedModel,
    task: Task,
    encoded: Mapping[str, datasets.Dataset],
    collator: Collator,
    *,
    batch_size: int,
    progress: bool,
) -> Evaluation:
    """Every metric of the task on every evaluation split, on the device the model is on.

    With one split the names are the task's (``accuracy``), with several they end in the split's
    (``accuracy_matched``); the task's main metric on its first split comes first. Several processes share the work,
    and each gets the whole result.

    Args:
        task: as the model answers it (``task.for_model``).
        encoded: every evaluation split, encoded.

    Raises:
        UserError: an output is not a number, or infinite.
    """
    metrics: dict[str, float] = {}
    losses = []
    found = {}
    seconds = 0.0
    for split, rows in encoded.items():
        start = time.perf_counter()
        outputs, loss = predict(model, task, rows, collator, batch_size=batch_size, progress=progress)
        seconds += time.perf_counter() - start
        losses.append(loss)
        found[split] = outputs
        scores = task.metrics(outputs, rows, task.evaluation[split])
        first = {task.main_metric: scores[task.main_metric]}
        suffix = f"_{split.removeprefix('validation_')}" if len(encoded) > 1 else ""
        metrics |= {f"{name}{suffix}": value for name, value in (first | scores).items()}
    return Evaluation(metrics, float(np.mean(losses)), seconds, found)


def predict(
    model: PreTrainedModel,
    task: Task,
    encoded: datasets.Dataset,
    collator: Collator,
    *,
    batch_size: int,
    progress: bool,
) -> tuple[Sequence[np.ndarray], float]:
    """Outputs in the order of the rows, without padding, and the mean loss against the targets.

    Batches are sorted by length, so that there is little padding.

    Raises:
        UserError: an output is not a number, or infinite.
    """
    was_training = model.training
    model.eval()
    order = longest_first(encoded["length"])
    state = PartialState()
    mine = order[state.process_index :: state.num_processes]
    rows = readable(encoded, model, task.objective).select(mine).remove_columns(["length", "idx"])
    passes = _passes(model, task, rows, collator, batch_size=batch_size, progress=progress and state.is_main_process)
    with fast_products(model):
        own = [(index, *answer) for index, answer in zip(mine, passes, strict=True)]
    model.train(was_training)
    gathered = sorted(gather_object(own), key=lambda answer: answer[0])
    answers = [outputs for _, outputs, _ in gathered]
    if not all(np.isfinite(outputs).all() for outputs in answers):
        raise UserError("the model's outputs are not finite numbers: its weights are damaged, or its training diverged")
    return answers, float(np.mean([loss for _, _, loss in gathered]))


@torch.inference_mode()
def _passes(
    model: PreTrainedModel,
    task: Task,
    rows: datasets.Dataset,
    collator: Collator,
    *,
    batch_size: int,
    progress: bool,
) -> Iterator[tuple[np.ndarray, float]]:
    """Outputs of each row, and the loss of the batch it was in."""
    # A loader draws a seed: not from the global stream, so that a run resumed after an evaluation is the same run.
    loader = DataLoader(rows, batch_size=batch_size, collate_fn=collator, generator=torch.Generator())
    for collated in tracked(loader, "evaluating", show=progress):
        batch = {name: value.to(model.device) for name, value in collated.items()}
        features = features_of(batch, task.objective)
        outputs = task.outputs(model(**features), features)
        loss = float(task.objective.loss(outputs, batch))
        real = features["attention_mask"].bool().cpu()
        for row, mask in zip(outputs.cpu(), real, strict=True):
            yield (row[mask] if task.objective.per_token else row).numpy(), loss
