"""Multi-label classification: any number of labels for each text, or for each pair of texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features, List, Value
from jaxtyping import Float, Int
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.objectives import ManyLabels
from contraprune.tasks.base import Flags, Layout, Task
from contraprune.tasks.classification import label_column, label_options
from contraprune.tasks.files import Rows, shown
from contraprune.tasks.labels import label_ids, label_values, match_labels, name_labels, one_per_row
from contraprune.tasks.texts import text_columns, tokenize

PROBLEM_TYPE = "multi_label_classification"
_SEPARATORS = (",", "|", ";")
_ZERO_OR_ONE = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@final
@dataclass(frozen=True, kw_only=True)
class MultiLabelClassification(Task):
    """Any number of labels for each text or pair.

    ``train`` and ``evaluation`` have the text columns, ``label`` (a zero or one for each of ``label_names``) and
    ``idx``.
    """

    auto_class: ClassVar[type] = AutoModelForSequenceClassification
    objective = ManyLabels()

    text_columns: tuple[str, ...]

    def model_options(self) -> dict[str, Any]:
        return label_options(self.label_names, PROBLEM_TYPE)

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        if config.problem_type not in (None, PROBLEM_TYPE):
            raise UserError(f"{name}: expected a model of {PROBLEM_TYPE}, found one of {config.problem_type}")
        names = [label for _, label in sorted(config.id2label.items())]
        return replace(self, label_order=tuple(match_labels(self.label_names, names, model=name)))

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch labels"]:
        return self.ordered(answer.logits)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        encoded = tokenize(dataset, tokenizer, self.text_columns, max_length=max_length)
        return encoded.rename_column("label", "labels")

    def classes(self, encoded: Dataset) -> Int[np.ndarray, " rows"]:
        """Rows with the same set of labels are of one class."""
        return np.unique(np.asarray(encoded["labels"]), axis=0, return_inverse=True)[1].reshape(-1)

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """F1 over all decisions (micro) and averaged over labels (macro), where a probability above 0.5 means yes;
        the average precision of all decisions; and the share of rows with every label right."""
        labels, logits = np.asarray(dataset["label"]), np.asarray(outputs)
        predicted = (logits > 0).astype(labels.dtype)
        scores = {
            f"f1_{average}": f1_score(labels, predicted, average=average, zero_division=0.0)
            for average in ("micro", "macro")
        }
        # With no label anywhere there is nothing to find, which scikit-learn warns about.
        found = average_precision_score(labels, logits, average="micro") if labels.any() else 0.0
        scores |= {"average_precision_micro": found, "subset_accuracy": accuracy_score(labels, predicted)}
        return {name: float(score) for name, score in scores.items()}


@final
@dataclass(frozen=True, kw_only=True)
class LabelSetLayout(Layout):
    """In which columns the texts and the labels stand, and what the labels mean.

    Attributes:
        label_columns: the one column of label lists; or, with ``one_column_each``, those of zeros and ones.
        separator: what stands between labels where a list is text; None where it is a single label.
        label_ids: label id by the value found in a list, as text.
        labels_of: whose labels these are, as errors name it.
    """

    text_columns: tuple[str, ...]
    label_columns: tuple[str, ...]
    one_column_each: bool
    separator: str | None
    label_names: tuple[str, ...]
    label_ids: Mapping[str, int]
    labels_of: str
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        texts = {column: rows.texts(column) for column in self.text_columns}
        sets = self._from_columns(rows) if self.one_column_each else self._from_lists(rows)
        columns = {**texts, "label": sets, "idx": list(range(len(rows.values)))}
        types = {column: Value("string") for column in texts} | {"label": List(Value("int8")), "idx": Value("int64")}
        return Dataset.from_dict(columns, features=Features(types))

    def task(self, **common: Any) -> MultiLabelClassification:
        return MultiLabelClassification(**common, main_metric="f1_micro", text_columns=self.text_columns)

    def _from_columns(self, rows: Rows) -> list[list[int]]:
        columns = [_zeros_and_ones(rows, column) for column in self.label_columns]
        return [list(row) for row in zip(*columns, strict=True)]

    def _from_lists(self, rows: Rows) -> list[list[int]]:
        (column,) = self.label_columns
        lists = _lists(rows, column, self.separator)
        flat = one_per_row(rows, column, lists)
        ids = iter(label_ids(flat, column, self.label_ids, labels_of=self.labels_of))
        sets = np.zeros((len(lists), len(self.label_names)), dtype=np.int8)
        for index, row in enumerate(lists):
            own = [*islice(ids, len(row))]
            if twice := [label for label in own if own.count(label) > 1]:
                expected = f"column '{column}': expected the labels of the row, each once"
                raise rows.error(index, f"{expected}, found '{self.label_names[twice[0]]}' twice in {row!r:.80}")
            sets[index, own] = 1
        return sets.tolist()


def inferred_layout(rows: Rows, flags: Flags) -> LabelSetLayout:
    """The layout of the user's own file: lists of labels in one column, or a column of zeros and ones for each.

    Raises:
        UserError: columns are missing or ambiguous, or the labels are not names or whole numbers.
    """
    if flags.label_columns is not None:
        return _columns_layout(rows, flags, tuple(flags.label_columns))
    column = label_column(rows, flags)
    texts = text_columns(rows, flags.text_columns, column)
    separator = _separator(rows, column, flags.label_separator)
    flat = one_per_row(rows, column, _lists(rows, column, separator))
    labels = name_labels(rows, column, label_values(flat, column), flags)
    return LabelSetLayout(
        text_columns=texts,
        label_columns=(column,),
        one_column_each=False,
        separator=separator,
        label_names=labels.names,
        label_ids=labels.ids,
        labels_of=labels.of,
    )


def _columns_layout(rows: Rows, flags: Flags, columns: tuple[str, ...]) -> LabelSetLayout:
    for flag in ("label_column", "labels", "label_separator"):
        if getattr(flags, flag) is not None:
            raise UserError(f"--{flag}: expected without --label_columns, which say it, found both")
    if len(set(columns)) < max(2, len(columns)):
        raise UserError(f"--label_columns: expected at least two different columns, found {shown(columns)}")
    return LabelSetLayout(
        text_columns=text_columns(rows, flags.text_columns, *columns),
        label_columns=columns,
        one_column_each=True,
        separator=None,
        label_names=columns,
        label_ids={},
        labels_of="--label_columns",
    )


def _zeros_and_ones(rows: Rows, column: str) -> list[int]:
    values = [str(value).lower() for value in rows.column(column)]
    for index, value in enumerate(values):
        if value not in _ZERO_OR_ONE:
            raise rows.error(index, f"column '{column}': expected 0 or 1, found {value!r:.80}")
    return [_ZERO_OR_ONE[value] for value in values]


def _separator(rows: Rows, column: str, asked: str | None) -> str | None:
    """What stands between the labels of a column of text: what was asked for, else the one usual sign in it."""
    texts = [value for value in rows.column(column) if isinstance(value, str)]
    if asked is not None:
        if not asked or not texts:
            found = "nothing" if not asked else f"lists in column '{column}' of {rows.source}"
            raise UserError(f"--label_separator: expected the text between labels, found {found}")
        return asked
    signs = [sign for sign in _SEPARATORS if any(sign in text for text in texts)]
    if len(signs) > 1:
        seen = f"column '{column}': expected one sign between labels, found {shown(signs)}"
        raise UserError(f"{rows.source}: {seen}; choose with --label_separator")
    return signs[0] if signs else None


def _lists(rows: Rows, column: str, separator: str | None) -> list[list[Any]]:
    """Lists as they are, and text as the labels in it; empty text has none."""
    lists = []
    for index, value in enumerate(rows.column(column)):
        if isinstance(value, str):
            labels = [label.strip() for label in (value.split(separator) if separator else [value])]
            lists.append([] if labels == [""] else labels)
        elif isinstance(value, list):
            if any(isinstance(label, bool | float) for label in value):  # as [1.0, 0.0], of all labels
                expected = "expected the names or numbers of the row's labels"
                other = "zeros and ones stand in a column for each label (--label_columns)"
                raise rows.error(index, f"column '{column}': {expected}, found {value!r:.80}; {other}")
            lists.append(value)
        else:
            found = "null" if value is None else f"{value!r:.80}"
            expected = "expected a list of labels (empty for none)"
            raise rows.error(index, f"column '{column}': {expected}, found {found}")
    return lists
