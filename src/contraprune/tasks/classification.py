"""Classification of single texts and of pairs of texts."""

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final
from uuid import uuid4

import datasets
import numpy as np
from datasets import Dataset, Features, Value
from jaxtyping import Float, Int
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.tasks.base import Task, content_fingerprint
from contraprune.tasks.files import Rows, shown

_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("text",),
    ("sentence",),
)
_TAKEN = ("label", "labels", "idx", "length", "input_ids", "attention_mask", "token_type_ids")
_PROGRESS_BAR_FROM = 20_000
_WHOLE = re.compile(r"0|-?[1-9][0-9]*")  # "007" is a name: it would not come back from a number
_DECIMAL = re.compile(r"-?[0-9]+\.?[0-9]*")


@final
@dataclass(frozen=True, kw_only=True)
class TextClassification(Task):
    """One label out of several for each text, or for each pair of texts.

    ``train`` and ``evaluation`` have the text columns, ``label`` (an index into ``label_names``) and ``idx``.
    """

    auto_class: ClassVar[type] = AutoModelForSequenceClassification

    text_columns: tuple[str, ...]

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        def tokenize(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            texts = (list(batch[column]) for column in self.text_columns)
            encoded = tokenizer(*texts, truncation=True, max_length=max_length)
            lengths = [len(ids) for ids in encoded["input_ids"]]
            return {**encoded, "labels": list(batch["label"]), "length": lengths}

        with _progress_bar(len(dataset)):
            return dataset.map(
                tokenize,
                batched=True,
                remove_columns=[*self.text_columns, "label"],
                # Nothing is cached on disk, so nothing needs to be found again; without a fingerprint of our
                # own, `datasets` would pickle the tokenizer to compute one, and warn where that fails.
                keep_in_memory=True,
                load_from_cache_file=False,
                new_fingerprint=uuid4().hex,
            )

    def metrics(
        self, logits: Float[np.ndarray, "examples classes"], labels: Int[np.ndarray, " examples"]
    ) -> dict[str, float]:
        """Accuracy, and the main metric; F1 is that of label id 1, as in GLUE."""
        predicted = np.asarray(logits).argmax(axis=-1)
        scores = {"accuracy": float(accuracy_score(labels, predicted))}
        if self.main_metric == "f1":
            scores["f1"] = float(f1_score(labels, predicted, zero_division=0.0))
        elif self.main_metric == "matthews_correlation":
            scores["matthews_correlation"] = float(matthews_corrcoef(labels, predicted))
        return scores


@dataclass(frozen=True, kw_only=True)
class Layout:
    """In which columns the texts and labels stand, and what the labels mean.

    Attributes:
        label_ids: label id by the value found in the label column.
        labels_of: whose labels these are, as errors name it.
        splits: names of the evaluation splits.
    """

    text_columns: tuple[str, ...]
    label_column: str
    label_names: tuple[str, ...]
    label_ids: Mapping[int | str, int]
    labels_of: str
    main_metric: str = "accuracy"
    splits: tuple[str, ...] = ("validation",)


def named_layout(
    name: str,
    *,
    text_columns: tuple[str, ...],
    label_names: tuple[str, ...],
    main_metric: str = "accuracy",
    splits: tuple[str, ...] = ("validation",),
) -> Layout:
    """The layout of a published data set: labels are ids in the order of ``label_names``, or these names."""
    return Layout(
        text_columns=text_columns,
        label_column="label",
        label_names=label_names,
        label_ids={value: i for i, label in enumerate(label_names) for value in (i, label)},
        labels_of=name,
        main_metric=main_metric,
        splits=splits,
    )


def inferred_layout(
    rows: Rows,
    *,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    known_labels: Sequence[str] = (),
) -> Layout:
    """The layout of the user's own file. Names in the label column are sorted, whole numbers too.

    Where all labels of the file are among ``known_labels`` (or are positions in them), those are the labels: a
    file to evaluate on need not have every class.

    Raises:
        UserError: columns are missing or ambiguous, or the labels are not names or whole numbers.
    """
    label = label_column or ("labels" if "labels" in rows.columns and "label" not in rows.columns else "label")
    texts = tuple(text_columns) if text_columns else _guess_text_columns(rows, label)
    if not 1 <= len(texts) <= 2 or len({*texts, label}) <= len(texts):
        found = f"{shown(texts)} and the label column '{label}'"
        raise UserError(f"--text_columns: expected one or two columns of their own, found {found}")
    if taken := [column for column in texts if column in _TAKEN]:
        raise UserError(f"--text_columns: expected names other than {shown(_TAKEN)}, found {shown(taken)}")
    values = _label_values(rows, label)
    distinct: list[Any] = sorted(set(values))
    if known := _positions(distinct, known_labels):
        return Layout(
            text_columns=texts,
            label_column=label,
            label_names=tuple(known_labels),
            label_ids=known,
            labels_of=rows.source,
        )
    if len(distinct) < 2:
        expected = f"expected at least two different labels in column '{label}'"
        raise UserError(f"{rows.source}: {expected}, found only {shown(distinct)}")
    return Layout(
        text_columns=texts,
        label_column=label,
        label_names=tuple(str(value) for value in distinct),
        label_ids={value: i for i, value in enumerate(distinct)},
        labels_of=rows.source,
    )


def build(
    name: str,
    layout: Layout,
    splits: Mapping[str, Rows],
    *,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
) -> TextClassification:
    """The task made of the first rows of each split; "train" is the training split.

    Raises:
        UserError: a row lacks a column, its text is not text, or its label is unknown.
    """
    data = {
        split: _dataset(rows.first(max_train_samples if split == "train" else max_eval_samples), layout)
        for split, rows in splits.items()
    }
    return TextClassification(
        name=name,
        train=data.get("train"),
        evaluation={split: dataset for split, dataset in data.items() if split != "train"},
        label_names=layout.label_names,
        main_metric=layout.main_metric,
        fingerprint=content_fingerprint(layout.label_names, data),
        text_columns=layout.text_columns,
    )


def match_labels(task_names: Sequence[str], model_names: Sequence[str], *, model: str) -> list[int]:
    """Index among the model's labels of each of the task's labels.

    Names are compared without case, "-" and "_". Where either side has no names (LABEL_0, LABEL_1, … or 0, 1,
    …), labels are matched by position, with a warning.

    Raises:
        UserError: the names are not the same set.
    """
    for spelling in (str, _loose):
        wanted, offered = ([spelling(name) for name in names] for names in (task_names, model_names))
        if len(set(wanted)) == len(wanted) and sorted(wanted) == sorted(offered):
            return [offered.index(name) for name in wanted]
    if len(task_names) == len(model_names) and (_nameless(task_names) or _nameless(model_names)):
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(task_names, model_names, strict=True))
        warnings.warn(f"{model}: labels are matched by position, for want of names: {pairs}", stacklevel=2)
        return list(range(len(task_names)))
    raise UserError(
        f"{model}: expected a model with the {len(task_names)} labels {shown(task_names)}, "
        f"found {len(model_names)}: {shown(model_names)}"
    )


def _positions(values: Sequence[int | str], names: Sequence[str]) -> dict[int | str, int] | None:
    """The position among ``names`` of each value, if all are names or all are positions."""
    if all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        return {value: int(value) for value in values}
    spellings = [_loose(name) for name in names]
    if all(isinstance(value, str) and _loose(value) in spellings for value in values):
        return {value: spellings.index(_loose(str(value))) for value in values}
    return None


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _nameless(names: Sequence[str]) -> bool:
    return any(list(names) == [f"{prefix}{i}" for i in range(len(names))] for prefix in ("LABEL_", ""))


def _guess_text_columns(rows: Rows, label: str) -> tuple[str, ...]:
    columns = set(rows.columns) - {label}
    found = [names for names in _TEXT_COLUMNS if columns.issuperset(names)]
    found = [names for names in found if not any(set(names) < set(others) for others in found)]
    if len(found) == 1:
        return found[0]
    if found:
        choices = " and ".join(",".join(names) for names in found)
        raise UserError(f"{rows.source}: expected one text or pair, found {choices}; choose with --text_columns")
    expected = "expected " + " or ".join(",".join(names) for names in _TEXT_COLUMNS) + " (else --text_columns)"
    raise UserError(f"{rows.source}: {expected}, found columns {shown(rows.columns)}")


def _label_values(rows: Rows, column: str) -> list[int] | list[str]:
    """The label column with one type throughout; in csv and tsv whole numbers become numbers if all are."""
    values = rows.column(column)
    if not rows.typed:
        if all(re.fullmatch(_WHOLE, value) for value in values):
            values = [int(value) for value in values]
        elif all(re.fullmatch(_DECIMAL, value) for value in values) and any("." in value for value in values):
            values = [float(value) for value in values]
    for index, value in enumerate(values):
        if problem := _label_problem(value):
            raise rows.error(index, f"column '{column}': {problem}")
        if type(value) is not type(values[0]):
            expected = "expected all labels to be names or all to be whole numbers"
            raise rows.error(index, f"column '{column}': {expected}, found {values[0]!r} before {value!r}")
    return values


def _label_problem(value: Any) -> str | None:
    if value is None or value == "":
        return "expected a label, found none"
    if value in (-1, "-1"):
        return "expected a label, found -1, which marks unlabelled rows such as GLUE's test splits"
    if type(value) is float:
        return f"expected a name or a whole number, found {value}; regression is not supported"
    if type(value) not in (int, str):
        return f"expected a name or a whole number, found {value!r:.80}"
    return None


def _label_ids(rows: Rows, layout: Layout) -> list[int]:
    ids = []
    for index, value in enumerate(rows.column(layout.label_column)):
        key = value
        if not rows.typed and value not in layout.label_ids and re.fullmatch(_WHOLE, value):
            key = int(value)
        problem = _label_problem(key)
        if problem is None and key not in layout.label_ids:
            known = shown(list(layout.label_ids))
            problem = f"expected a label of {layout.labels_of} ({known}), found {value!r:.80}"
        if problem:
            raise rows.error(index, f"column '{layout.label_column}': {problem}")
        ids.append(layout.label_ids[key])
    return ids


def _dataset(rows: Rows, layout: Layout) -> Dataset:
    texts = {column: rows.texts(column) for column in layout.text_columns}
    columns = {**texts, "label": _label_ids(rows, layout), "idx": list(range(len(rows.values)))}
    types = {column: Value("string" if column in texts else "int64") for column in columns}
    return Dataset.from_dict(columns, features=Features(types))


@contextmanager
def _progress_bar(rows: int) -> Iterator[None]:
    """Hide the progress bar of `Dataset.map` for small sets, unless the user's environment decides."""
    decided = datasets.config.HF_DATASETS_DISABLE_PROGRESS_BARS is not None
    if decided or rows >= _PROGRESS_BAR_FROM or datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()
