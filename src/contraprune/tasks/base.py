"""What training and evaluation may ask of any data set."""

import abc
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from datasets import Dataset
from jaxtyping import Float, Int
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Task(abc.ABC):
    """A loaded data set with everything that training and evaluation need to know about it.

    Attributes:
        name: "sst2", "toy", or the file's name without its extension.
        train: the training rows in file order: the task's own columns and ``idx`` (0 to n-1); None where
            they were not asked for.
        evaluation: the same for each evaluation split, by the split's name; ``idx`` starts at 0 in each.
        label_names: the name of each label id; empty for a task without classes.
        main_metric: the key of ``metrics()`` by which models of this task are compared.
        fingerprint: SHA-256 (hex) of the loaded content: label names, columns and rows in order, of every
            loaded split. It does not depend on where or in which format the data lie.
        auto_class: the ``AutoModelFor…`` class that loads a model for the task.
    """

    auto_class: ClassVar[type]

    name: str
    train: Dataset | None
    evaluation: dict[str, Dataset]
    label_names: tuple[str, ...]
    main_metric: str
    fingerprint: str

    @abc.abstractmethod
    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """What the model reads: ``input_ids``, ``attention_mask`` (``token_type_ids`` where the tokenizer
        makes them) cut to ``max_length`` tokens and not padded, ``labels``, ``idx``, and ``length`` (tokens).
        """

    @abc.abstractmethod
    def metrics(
        self, logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
    ) -> dict[str, float]:
        """Scores by name, higher is better; columns of ``logits`` in the order of ``label_names``."""


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
