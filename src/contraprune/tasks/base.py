"""What training and evaluation may ask of any data set."""

import abc
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from datasets import Dataset
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DataCollatorWithPadding, PretrainedConfig, PreTrainedTokenizerBase

from contraprune.objectives import Objective
from contraprune.pooling import Pooling
from contraprune.tasks.files import Rows

Collator = Callable[[list[dict[str, Any]]], Any]


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A loaded data set with everything that training and evaluation need to know about it.

    Attributes:
        auto_class: the ``AutoModelFor…`` class that loads a model for the task.
        objective: what a model of the task trains on.
        default_max_length: the tokens that texts are cut to where nothing else is asked for.
        default_pooling: the sentence representation where nothing else is asked for; None where the model says it
            (:attr:`pooling`).
        name: "sst2", "toy", or the file's name without its extension.
        train: the training rows in file order: the task's own columns and ``idx`` (0 to n-1); None where
            they were not asked for.
        evaluation: the same for each evaluation split, by the split's name; ``idx`` starts at 0 in each.
        label_names: the name of each label id; empty for a task without classes.
        main_metric: the key of ``metrics()`` by which models of this task are compared.
        fingerprint: SHA-256 (hex) of the loaded content: label names, columns and rows in order, of every
            loaded split. It does not depend on where or in which format the data lie.
        label_order: the model's index of each label, where the model numbers them otherwise (:meth:`for_model`).
    """

    auto_class: ClassVar[type]
    objective: ClassVar[Objective]
    default_max_length: ClassVar[int] = 128
    default_pooling: ClassVar[Literal["cls", "mean"] | None] = "mean"

    name: str
    train: Dataset | None
    evaluation: dict[str, Dataset]
    label_names: tuple[str, ...]
    main_metric: str
    fingerprint: str
    label_order: tuple[int, ...] = ()

    # ---- models ----

    @abc.abstractmethod
    def model_options(self) -> dict[str, Any]:
        """What a model gets beside its weights when it is fine-tuned: label names, kind of problem."""

    @abc.abstractmethod
    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        """The task as a model with this configuration answers it: outputs are read in the order of the labels.

        Raises:
            UserError: the model, ``name`` in messages, was made for something else.
        """

    @abc.abstractmethod
    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch ..."]:
        """What the objective looks at, float32, of a model's answer (its ``ModelOutput``) to these features."""

    @property
    def pooling(self) -> Pooling | None:
        """The pooling that a model's own outputs come from; None where representations may be pooled in any way."""
        return None

    def files(self) -> Mapping[str, str]:
        """Text files that a saved model of the task needs beside its weights, by their path."""
        return {}

    def ordered(self, logits: Float[Tensor, "... labels"]) -> Float[Tensor, "... labels"]:
        """Logits of a model in the order of ``label_names``, float32."""
        logits = logits.float()
        return logits[..., list(self.label_order)] if self.label_order else logits

    # ---- data ----

    @abc.abstractmethod
    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """What the model reads, a row per forward pass: ``input_ids``, ``attention_mask`` (``token_type_ids`` where
        the tokenizer makes them) cut to ``max_length`` tokens and not padded, the objective's targets, ``idx`` (0 to
        n-1) and ``length`` (tokens). Columns that only :meth:`metrics` reads may stand beside them.
        """

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Makes a batch of encoded rows, padded to the longest."""
        return DataCollatorWithPadding(tokenizer)

    @abc.abstractmethod
    def classes(self, encoded: Dataset) -> Int[np.ndarray, " rows"] | None:
        """The class of each encoded row, for contrast by label; None where rows have no class."""

    @abc.abstractmethod
    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """Scores by name, higher is better.

        Args:
            outputs: of a model for each row of ``encoded``; without the padding where they are per token.
            encoded: ``encode(dataset)``.
            dataset: one of the evaluation splits.
        """

    def check_answers(self, outputs: Mapping[str, Sequence[np.ndarray]], *, name: str) -> None:  # noqa: B027
        """Refuses a teacher, ``name`` in messages, whose answers contradict the names of its labels.

        Args:
            outputs: as for :meth:`metrics`, by evaluation split.

        Raises:
            UserError: they do.
        """


class Layout(abc.ABC):
    """In which columns of a data set what stands: makes a :class:`Task` of its rows.

    Attributes:
        splits: names of the evaluation splits.
        label_names: the name of each label id; empty for a task without classes.
    """

    splits: tuple[str, ...]
    label_names: tuple[str, ...]

    @abc.abstractmethod
    def dataset(self, rows: Rows) -> Dataset:
        """The checked rows of one split: the task's columns and ``idx``.

        Raises:
            UserError: a row lacks a column, or what stands in it cannot be used.
        """

    def training(self, rows: Rows) -> Dataset:
        """The same for the training split, where that is another kind of data."""
        return self.dataset(rows)

    @abc.abstractmethod
    def task(self, **common: Any) -> Task:
        """The task, given the attributes that every task has."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What the user said about the columns of their own files, under the names of the flags.

    Attributes:
        known_labels: a model's labels, which a file to evaluate on may have fewer of.
    """

    text_columns: Sequence[str] | None
    label_column: str | None
    labels: Sequence[str] | None = None
    label_columns: Sequence[str] | None = None
    label_separator: str | None = None
    known_labels: Sequence[str] = ()


def build(
    name: str,
    layout: Layout,
    splits: Mapping[str, Rows],
    *,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> Task:
    """The task made of the first rows of each split; "train" is the training split.

    Raises:
        UserError: rows cannot be used.
    """
    data = {
        split: layout.training(rows.first(max_train_samples))
        if split == "train"
        else layout.dataset(rows.first(max_eval_samples))
        for split, rows in splits.items()
    }
    return layout.task(
        name=name,
        train=data.get("train"),
        evaluation={split: dataset for split, dataset in data.items() if split != "train"},
        label_names=layout.label_names,
        fingerprint=content_fingerprint(layout.label_names, data),
    )


def content_fingerprint(label_names: Sequence[str], splits: Mapping[str, Dataset]) -> str:
    """SHA-256 (hex) of the names, columns and rows, in order."""
    digest = hashlib.sha256()
    for part in _content(label_names, splits):
        digest.update(json.dumps(part).encode() + b"\n")
    return digest.hexdigest()


def _content(label_names: Sequence[str], splits: Mapping[str, Dataset]) -> Iterable[list[object]]:
    yield list(label_names)
    for split, dataset in splits.items():
        for column in dataset.column_names:
            yield [split, column, dataset.data.column(column).to_pylist()]
