"""The map of representations: the projection against an eigendecomposition, and labels against counting."""

import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest

from contraprune.objectives import ManyLabels, OneLabel, Value
from contraprune.pipeline import prune
from contraprune.representations import _named, project


def test_the_projection_is_that_of_the_covariance_of_all_rows():
    rng = np.random.default_rng(0)
    rows = {name: rng.normal(size=(40, 6)) * [3, 2, 1, 0.5, 0.2, 0.1] + shift for name, shift in (("a", 0), ("b", 1))}
    flat, explained = project(rows)
    everything = np.concatenate([rows["a"], rows["b"]])
    centred = everything - everything.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    expected = centred @ vectors[:, [-1, -2]]
    found = np.concatenate([flat["a"], flat["b"]])
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)  # the sign of an axis is free
    assert explained == pytest.approx([values[-1] / values.sum(), values[-2] / values.sum()])


def task(objective, names=()):
    return SimpleNamespace(objective=objective, label_names=names)


def test_labels_have_their_names_and_the_rarest_are_put_together():
    chosen = np.arange(60)
    names = tuple(f"label {n}" for n in range(12))
    classes = np.repeat(np.arange(12), [10, 9, 8, 7, 6, 5, 4, 3, 3, 2, 2, 1])
    labels, shown = _named(task(OneLabel(), names), datasets.Dataset.from_dict({"labels": classes}), chosen, classes)
    assert shown == [f"label {n}" for n in range(7)] + ["other"]
    assert [shown[label] for label in labels] == [f"label {n}" if n < 7 else "other" for n in classes]
    few, shown = _named(
        task(OneLabel(), names), datasets.Dataset.from_dict({"labels": [2, 0]}), chosen[:2], np.array([2, 0])
    )
    assert ([shown[label] for label in few], len(shown)) == (["label 2", "label 0"], 2)


def test_numbers_sets_of_labels_and_tasks_without_labels():
    numbers = datasets.Dataset.from_dict({"labels": [0.0, 5.0, 1.0, 4.0, 2.5, 3.0]})
    labels, shown = _named(task(Value()), numbers, np.arange(6), None)
    assert [shown[label] for label in labels] == [shown[0], shown[2], shown[0], shown[2], shown[1], shown[1]]
    sets = datasets.Dataset.from_dict({"labels": [[1, 0], [1, 1], [0, 0], [1, 0]]})
    labels, shown = _named(task(ManyLabels(), ("new", "cheap")), sets, np.arange(4), np.array([1, 2, 0, 1]))
    assert [shown[label] for label in labels] == ["new", "new, cheap", "no label", "new"]
    labels, shown = _named(task(OneLabel()), sets, np.arange(4), None)
    assert (labels.tolist(), shown) == ([0, 0, 0, 0], [""])


def test_a_map_shows_the_models_as_they_are(tiny_options, tmp_path):
    """At density 1 and without training the pruned model is the teacher: its points are the teacher's."""
    options = tiny_options | {"method": "magnitude", "density": 1.0, "num_train_epochs": 1, "learning_rate": 1e-12}
    prune(**options | {"bank_dtype": "float32", "eval_strategy": "no"})
    found = json.loads((tmp_path / "run" / "representations.json").read_text())
    points = {name: np.array(rows) for name, rows in found["points"].items()}
    assert found["examples"] == 64
    np.testing.assert_allclose(points["pruned"], points["finetuned"], atol=2e-4)
    assert np.abs(points["pruned"] - points["pretrained"]).max() > 0.05
