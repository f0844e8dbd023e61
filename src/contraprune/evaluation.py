"""Metrics of a finished model on a task's evaluation splits."""

import time
from typing import NamedTuple

import datasets
import numpy as np
import torch
from jaxtyping import Float
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from contraprune.config import DataConfig, EvaluationConfig
from contraprune.encoding import readable
from contraprune.saving import load_config, load_pretrained, load_tokenizer
from contraprune.tasks import Task, load_task
from contraprune.tasks.classification import match_labels


class Evaluation(NamedTuple):
    """Metrics by name, and the seconds the forward passes took."""

    metrics: dict[str, float]
    seconds: float


def label_order(task: Task, model: PreTrainedModel, name: str) -> list[int]:
    """The model's index of each of the task's labels, matched by name.

    Raises:
        UserError: the model has other labels than the task.
    """
    names = [label for _, label in sorted(model.config.id2label.items())]
    return match_labels(task.label_names, names, model=name)


def evaluate(
    model: PreTrainedModel,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    *,
    name: str,
    max_length: int,
    batch_size: int = 64,
    progress: bool = True,
) -> Evaluation:
    """Every metric of the task on every evaluation split, on the device the model is on.

    With one split the names are the task's (``accuracy``), with several they end in the split's
    (``accuracy_matched``); the task's main metric on its first split comes first.
    """
    order = label_order(task, model, name)
    metrics: dict[str, float] = {}
    seconds = 0.0
    for split, dataset in task.evaluation.items():
        encoded = task.encode(dataset, tokenizer, max_length=max_length)
        start = time.perf_counter()
        logits = predict(model, encoded, tokenizer, batch_size=batch_size, progress=progress)
        seconds += time.perf_counter() - start
        metrics |= split_metrics(task, split, logits[:, order], np.asarray(dataset["label"]))
    return Evaluation(metrics, seconds)


def evaluate_path(path: str, data: DataConfig, config: EvaluationConfig) -> Evaluation:
    """:func:`evaluate` of a model directory or hub name, on a GPU where there is one.

    Raises:
        UserError: the model or the data cannot be used, or their labels differ.
    """
    names = [label for _, label in sorted(load_config(path).id2label.items())]
    task = load_task(**data.source(), seed=0, need_train=False, known_labels=names)
    model = load_pretrained(task.auto_class, path).to("cuda" if torch.cuda.is_available() else "cpu")
    return evaluate(
        model,
        task,
        load_tokenizer(path),
        name=path,
        max_length=data.max_length,
        batch_size=config.batch_size,
        progress=not config.quiet,
    )


def split_metrics(
    task: Task, split: str, logits: Float[np.ndarray, "examples classes"], labels: np.ndarray
) -> dict[str, float]:
    """The task's metrics of one split, the main one first, named after the split where there are several."""
    scores = task.metrics(logits, labels)
    first = {task.main_metric: scores[task.main_metric]}
    suffix = f"_{split.removeprefix('validation_')}" if len(task.evaluation) > 1 else ""
    return {f"{name}{suffix}": value for name, value in (first | scores).items()}


@torch.inference_mode()
def predict(
    model: PreTrainedModel,
    encoded: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int,
    progress: bool,
) -> Float[np.ndarray, "examples classes"]:
    """Logits in the order of the rows; batches are sorted by length, so that there is little padding."""
    was_training = model.training
    model.eval()
    order = sorted(range(len(encoded)), key=encoded["length"].__getitem__, reverse=True)
    features = readable(encoded, model).select(order).remove_columns(["length", "labels", "idx"])
    loader = DataLoader(features, batch_size=batch_size, collate_fn=DataCollatorWithPadding(tokenizer))
    batches = tqdm(loader, desc="evaluating", disable=not progress, leave=False)
    logits = torch.cat([model(**batch.to(model.device)).logits.float().cpu() for batch in batches]).numpy()
    model.train(was_training)
    result = np.empty_like(logits)
    result[order] = logits
    return result
