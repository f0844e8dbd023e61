"""A map of representations: the same examples as several models see them, projected to the plane together."""

import itertools
from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np
from jaxtyping import Float, Int
from sklearn.decomposition import PCA

from contraprune.encoding import Reader, encode
from contraprune.objectives import ManyLabels, Value
from contraprune.tasks import Task
from contraprune.trainer import ContrastTrainer, Knowledge

MOST_EXAMPLES = 500
MOST_LABELS = 8  # told apart by colour; the rarest are put together
_MAPPED = ("pretrained", "finetuned")


def project(
    representations: Mapping[str, Float[np.ndarray, "examples dim"]],
) -> tuple[dict[str, Float[np.ndarray, "examples 2"]], list[float]]:
    """The first two principal components of all rows taken together, and the share of the variance they explain."""
    pca = PCA(n_components=2, svd_solver="full")
    flat = pca.fit_transform(np.concatenate([*representations.values()]).astype(np.float64))
    parts = np.split(flat, len(representations))
    return dict(zip(representations, parts, strict=True)), [float(share) for share in pca.explained_variance_ratio_]


def map_of_representations(
    trainer: ContrastTrainer, reader: Reader, knowledge: Knowledge, *, batch_size: int, seed: int
) -> dict[str, Any]:
    """What ``representations.json`` of a run holds: where training examples lie for each model, before and after.

    A sample of the training set, its rows from the banks of the pre-trained and the fine-tuned model and as the
    trainer's model, now pruned, represents it. No text of an example is kept.

    Returns:
        ``points`` (by model, (x, y) per example), ``labels`` (index into ``names``), ``explained``; or ``skipped``,
        the reason why there is no map.
    """
    banks = {name: knowledge.banks[name].files[0] for name in _MAPPED if name in knowledge.banks}
    if not banks:
        return {"skipped": "the run had no bank of the pre-trained or the fine-tuned model to draw from (--contrast)"}
    dataset: datasets.Dataset = trainer.train_dataset
    if len(dataset) < 3:
        return {"skipped": "the training set has fewer than three examples"}
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(dataset), min(MOST_EXAMPLES, len(dataset)), replace=False))
    found = {name: file[chosen].float().numpy() for name, file in banks.items()}
    row_of = {int(example): row for row, example in enumerate(chosen)}
    pruned = np.empty_like(next(iter(found.values())))
    passes = encode(
        trainer.model,
        reader,
        trainer.task,
        dataset.select(chosen),
        collator=trainer.data_collator,
        batch_size=batch_size,
        accelerator=trainer.accelerator,
        description="mapping representations",
        progress=False,
    )
    for batch in passes:
        pruned[[row_of[example] for example in batch.ids.tolist()]] = batch.representations.cpu().numpy()
    flat, explained = project(found | {"pruned": pruned})
    classes = None if knowledge.classes is None else knowledge.classes.numpy()[chosen]
    labels, names = _named(trainer.task, dataset, chosen, classes)
    return {
        "examples": len(chosen),
        "explained": [round(share, 4) for share in explained],
        "names": names,
        "labels": labels.tolist(),
        "points": {name: np.round(points, 4).tolist() for name, points in flat.items()},
    }


def _named(
    task: Task, dataset: datasets.Dataset, chosen: Int[np.ndarray, " n"], classes: Int[np.ndarray, " n"] | None
) -> tuple[Int[np.ndarray, " n"], list[str]]:
    """The label of each example for its colour, and the labels' names; one label without a name for a task without."""
    if isinstance(task.objective, Value):
        numbers = np.asarray(dataset.select(chosen)["labels"], dtype=np.float64)
        edges = np.unique(np.quantile(numbers, [0, 1 / 3, 2 / 3, 1]))
        if len(edges) < 3:
            return np.zeros(len(chosen), dtype=int), [""]
        names = [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        return np.digitize(numbers, edges[1:-1]), names
    if classes is None:
        return np.zeros(len(chosen), dtype=int), [""]
    kinds, counts = np.unique(classes, return_counts=True)
    most = MOST_LABELS if len(kinds) <= MOST_LABELS else MOST_LABELS - 1
    order = np.sort(kinds[np.argsort(-counts, kind="stable")][:most])
    names = [_name(task, dataset, kind, chosen[classes == kind][0]) for kind in order.tolist()]
    labels = np.searchsorted(order, classes).clip(max=len(order) - 1)
    rare = order[labels] != classes
    if rare.any():
        labels[rare] = len(order)
        names.append("other")
    return labels, names


def _name(task: Task, dataset: datasets.Dataset, kind: int, example: int) -> str:
    """The name of a class, or of the set of labels that makes one; ``example`` is of that class."""
    if isinstance(task.objective, ManyLabels):
        present = np.flatnonzero(dataset[int(example)]["labels"])
        return ", ".join(task.label_names[label] for label in present) or "no label"
    return task.label_names[kind]
