"""Classification of single texts and of pairs of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features, Value
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, matthews_corrcoef
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.objectives import OneLabel
from contraprune.tasks.base import Flags, Layout, Task
from contraprune.tasks.files import Rows, shown
from contraprune.tasks.labels import label_ids, label_values, match_labels, name_labels, named_ids
from contraprune.tasks.texts import text_columns, tokenize


@final
@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """One label out of several for each text, or for each pair of texts.

    ``train`` and ``evaluation`` have the text columns, ``label`` (an index into ``label_names``) and ``idx``.
    """

    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    objective = OneLabel()

    text_columns: tuple[str, ...]

    def model_options(self) -> dict[str, Any]:
        return label_options(self.label_names, "single_label_classification")

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        names = [label for _, label in sorted(config.id2label.items())]
        return replace(self, label_order=tuple(match_labels(self.label_names, names, model=name)))

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch classes"]:
        return self.ordered(answer.logits)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        encoded = tokenize(dataset, tokenizer, self.text_columns, max_length=max_length)
        return encoded.rename_column("label", "labels")

    def classes(self, encoded: Dataset) -> Int[np.ndarray, " rows"]:
        return np.asarray(encoded["labels"])

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """Accuracy, and the main metric; F1 is that of label id 1, as in GLUE."""
        labels, predicted = np.asarray(dataset["label"]), np.asarray(outputs).argmax(axis=-1)
        scores = {"accuracy": float(accuracy_score(labels, predicted))}
        if self.main_metric == "f1":
            scores["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        elif self.main_metric == "matthews_correlation":
            scores["matthews_correlation"] = float(matthews_corrcoef(labels, predicted))
        return scores

    def check_answers(self, outputs: Mapping[str, Sequence[np.ndarray]], *, name: str) -> None:
        """A model that is far better when its outputs are taken for other labels has them in another order."""
        for split, rows in outputs.items():
            counts = confusion_matrix(
                self.evaluation[split]["label"], np.asarray(rows).argmax(axis=-1), labels=range(len(self.label_names))
            )
            _, better = linear_sum_assignment(counts, maximize=True)
            accuracies = [c / counts.sum() for c in (np.trace(counts), counts[range(len(better)), better].sum())]
            constant = counts.sum(axis=1).max() / counts.sum()
            if accuracies[1] - accuracies[0] < 0.2 or accuracies[1] < constant + max(0.1, counts.sum() ** -0.5):
                continue
            read = np.asarray(self.label_order or range(len(better)))
            orders = [[self.label_names[label] for label in np.argsort(index)] for index in (read, read[better])]
            raise UserError(
                f"{name}: its outputs are read as {shown(orders[0])}, with an accuracy of {accuracies[0]:.2f} "
                f"({split}); as {shown(orders[1])} it would be {accuracies[1]:.2f}: correct id2label in its config.json"
            )


def label_options(label_names: Sequence[str], problem_type: str) -> dict[str, Any]:
    """The entries of a model's configuration that name its labels."""
    names = dict(enumerate(label_names))
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": problem_type}


@final
@dataclass(frozen=True, kw_only=True)
class ClassLayout(Layout):
    """In which columns the texts and the label stand, and what the labels mean.

    Attributes:
        label_ids: label id by the value found in the label column, as text.
        labels_of: whose labels these are, as errors name it.
    """

    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    label_ids: Mapping[str, int]
    labels_of: str
    main_metric: str = "accuracy"
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        texts = {column: rows.texts(column) for column in self.text_columns}
        labels = label_ids(rows, self.label_column, self.label_ids, labels_of=self.labels_of)
        columns = {**texts, "label": labels, "idx": list(range(len(rows.values)))}
        types = {column: Value("string" if column in texts else "int64") for column in columns}
        return Dataset.from_dict(columns, features=Features(types))

    def task(self, **common: Any) -> TextClassification:
        return TextClassification(**common, main_metric=self.main_metric, text_columns=self.text_columns)


def named_layout(
    name: str,
    *,
    text_columns: tuple[str, ...],
    label_names: tuple[str, ...],
    main_metric: str = "accuracy",
    splits: tuple[str, ...] = ("validation",),
) -> ClassLayout:
    """The layout of a published data set: labels are ids in the order of ``label_names``, or these names."""
    return ClassLayout(
        text_columns=text_columns,
        label_column="label",
        label_names=label_names,
        label_ids=named_ids(label_names),
        labels_of=name,
        main_metric=main_metric,
        splits=splits,
    )


def inferred_layout(rows: Rows, flags: Flags) -> ClassLayout:
    """The layout of the user's own file. Names in the label column are sorted, whole numbers too.

    Raises:
        UserError: columns are missing or ambiguous, or the labels are not names or whole numbers.
    """
    label = label_column(rows, flags)
    texts = text_columns(rows, flags.text_columns, label)
    labels = name_labels(rows, label, label_values(rows, label), flags)
    return ClassLayout(
        text_columns=texts, label_column=label, label_names=labels.names, label_ids=labels.ids, labels_of=labels.of
    )


def label_column(rows: Rows, flags: Flags) -> str:
    """The column of the label: the one asked for, else ``label`` or ``labels``."""
    plural = "labels" in rows.columns and "label" not in rows.columns
    return flags.label_column or ("labels" if plural else "label")
