"""Regression: a real number for each text, or for each pair of texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features
from datasets import Value as Type
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.objectives import Value
from contraprune.tasks.base import Flags, Layout, Task
from contraprune.tasks.classification import label_column
from contraprune.tasks.files import Rows
from contraprune.tasks.labels import UNLABELLED
from contraprune.tasks.texts import text_columns, tokenize


@final
@dataclass(frozen=True, kw_only=True)
class TextRegression(Task):
    """A real number for each text or pair. ``train`` and ``evaluation`` have the text columns, ``label``, ``idx``."""

    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    objective = Value()

    text_columns: tuple[str, ...]

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        if config.num_labels != 1:
            raise UserError(f"{name}: expected a model of one number (regression), found {config.num_labels} labels")
        return self

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch 1"]:
        return self.ordered(answer.logits)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        encoded = tokenize(dataset, tokenizer, self.text_columns, max_length=max_length)
        return encoded.rename_column("label", "labels")

    def classes(self, encoded: Dataset) -> None:
        return None

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        return correlations(np.asarray(outputs, dtype=np.float64)[:, 0], np.asarray(dataset["label"]))


def correlations(predicted: Float[np.ndarray, " rows"], labels: Float[np.ndarray, " rows"]) -> dict[str, float]:
    """Correlations of Pearson and Spearman; zero where all numbers of a side are the same."""
    if len(labels) < 2 or np.ptp(predicted) == 0 or np.ptp(labels) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": float(pearsonr(predicted, labels).statistic),
        "spearman": float(spearmanr(predicted, labels).statistic),
    }


@final
@dataclass(frozen=True, kw_only=True)
class NumberLayout(Layout):
    """In which columns the texts and the number stand.

    Attributes:
        limits: the lowest and highest number there is; None for any.
    """

    text_columns: tuple[str, ...]
    label_column: str = "label"
    limits: tuple[float, float] | None = None
    label_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        texts = {column: rows.texts(column) for column in self.text_columns}
        labels = numbers(rows, self.label_column, self.limits)
        columns = {**texts, "label": labels, "idx": list(range(len(rows.values)))}
        types = {column: Type("string") for column in texts} | {"label": Type("float32"), "idx": Type("int64")}
        return Dataset.from_dict(columns, features=Features(types))

    def task(self, **common: Any) -> TextRegression:
        return TextRegression(**common, main_metric="spearman", text_columns=self.text_columns)


def inferred_layout(rows: Rows, flags: Flags) -> NumberLayout:
    """The layout of the user's own file.

    Raises:
        UserError: columns are missing or ambiguous.
    """
    label = label_column(rows, flags)
    return NumberLayout(text_columns=text_columns(rows, flags.text_columns, label), label_column=label)


def numbers(rows: Rows, column: str, limits: tuple[float, float] | None) -> list[float]:
    """All values of a column as finite numbers. Raises UserError at the first that is none, or beyond the limits."""
    expected = "expected a number" if limits is None else f"expected a number from {limits[0]:g} to {limits[1]:g}"
    found = []
    for index, value in enumerate(rows.column(column)):
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise rows.error(index, f"column '{column}': {expected}, found {value!r:.80}")
        if limits is not None and not limits[0] <= number <= limits[1]:
            seen = UNLABELLED if number == -1 else f"{value!r:.80}"
            raise rows.error(index, f"column '{column}': {expected}, found {seen}")
        found.append(number)
    return found
