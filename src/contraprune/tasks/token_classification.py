"""Token classification: a tag for every word of a text, such as the entity it is part of or its part of speech."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features, List, Value
from jaxtyping import Float
from seqeval.metrics.sequence_labeling import precision_recall_fscore_support
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from contraprune.errors import UserError
from contraprune.objectives import TokenLabels
from contraprune.tasks.base import Collator, Flags, Layout, Task
from contraprune.tasks.files import Rows, shown
from contraprune.tasks.labels import label_ids, label_values, match_labels, name_labels, nameless, one_per_row
from contraprune.tasks.texts import mapped

OUTSIDE = "O"
_MISSED = -1  # the prediction for a word that the model never saw
_IGNORED = -100
_ENTITY_TAG = re.compile(r"O|[BIESLU](-.+)?", re.IGNORECASE)  # IOB, IOBES, and BILOU: the same with L for E and U for S
_TOKEN_COLUMNS = ("tokens", "words")
_TAG_COLUMNS = ("ner_tags", "tags", "labels", "label")


@final
@dataclass(frozen=True, kw_only=True)
class TokenClassification(Task):
    """One tag for each word of each text.

    ``train`` and ``evaluation`` have ``tokens`` (the words of a row), ``tags`` (indices into ``label_names``) and
    ``idx``. The model answers for the first piece of each word; the other pieces and special tokens are labelled -100.
    """

    auto_class: ClassVar[type] = AutoModelForTokenClassification
    objective = TokenLabels()

    def model_options(self) -> dict[str, Any]:
        names = dict(enumerate(self.label_names))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}}

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        """Numbered tags get the names that the model has for them: without names there are no entities."""
        offered = [label for _, label in sorted(config.id2label.items())]
        order = match_labels(self.label_names, offered, model=name)
        names = tuple(offered[i] for i in order) if nameless(self.label_names) else self.label_names
        return replace(self, label_order=tuple(order), label_names=names, main_metric=main_metric(names))

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch length classes"]:
        return self.ordered(answer.logits)

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """Words are read as in running text; ``words`` has the number of the word of each labelled token.

        Raises:
            UserError: the tokenizer is a slow one, which cannot tell words from their pieces.
        """
        if not tokenizer.is_fast:
            expected = "expected a fast tokenizer (tokenizer.json), which can tell the words from their pieces"
            raise UserError(f"{tokenizer.name_or_path}: {expected}, found {type(tokenizer).__name__}")
        separator = _separator(tokenizer)

        def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
            texts = [[*row[:1], *(separator + word for word in row[1:])] for row in batch["tokens"]]
            encoded = tokenizer(texts, is_split_into_words=True, truncation=True, max_length=max_length)
            words: list[list[int]] = []
            labels: list[list[int]] = []
            for row, tags in enumerate(batch["tags"]):
                firsts = first_pieces(encoded.word_ids(row))
                words.append([word for word in firsts if word is not None])
                labels.append([_IGNORED if word is None else tags[word] for word in firsts])
            return {**encoded, "labels": labels, "words": words, "length": [len(row) for row in labels]}

        return mapped(dataset, encode, remove_columns=["tokens", "tags"])

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        return DataCollatorForTokenClassification(tokenizer)

    def classes(self, encoded: Dataset) -> None:
        return None

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """Precision, recall and F1 of whole entities, as CoNLL-2003 counts them, and the accuracy of the tags.

        Where the tags are not those of entities: their accuracy and macro F1. Every word counts: one that the
        model never saw, because its text was cut or the tokenizer makes nothing of it, is taken for "O", or as
        wrong where there is no "O".
        """
        predicted = self._predicted(outputs, encoded, dataset)
        right, answers = [*chain.from_iterable(dataset["tags"])], [*chain.from_iterable(predicted)]
        accuracy = {"accuracy": float(accuracy_score(right, answers))}
        if not are_entities(self.label_names):
            seen = sorted({*right, *answers} - {_MISSED})
            f1 = f1_score(right, answers, labels=seen, average="macro", zero_division=0.0)
            return accuracy | {"f1_macro": float(f1)}
        names = {_MISSED: OUTSIDE} | dict(enumerate(map(_iobes, self.label_names)))
        sequences = [[[names[tag] for tag in row] for row in rows] for rows in (dataset["tags"], predicted)]
        precision, recall, f1, _ = precision_recall_fscore_support(*sequences, average="micro", zero_division=0)
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall)} | accuracy

    def _predicted(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> list[list[int]]:
        """A tag for every word of every text."""
        names = [name.upper() for name in self.label_names]
        missed = names.index(OUTSIDE) if OUTSIDE in names else _MISSED
        predicted = []
        for row, labels, words, tags in zip(outputs, encoded["labels"], encoded["words"], dataset["tags"], strict=True):
            answers = [missed] * len(tags)
            for word, answer in zip(words, row[np.asarray(labels) != _IGNORED].argmax(axis=-1), strict=True):
                answers[word] = int(answer)
            predicted.append(answers)
        return predicted


def first_pieces(words: Iterable[int | None]) -> list[int | None]:
    """The word of each token that is the first of its word, None for all others.

    Args:
        words: the word of each token, None for special tokens.
    """
    previous = None
    firsts = []
    for word in words:
        firsts.append(word if word != previous else None)
        previous = word
    return firsts


def are_entities(label_names: Sequence[str]) -> bool:
    """Whether tags say where entities begin and go on: IOB1, IOB2, IOBES or BILOU."""
    return all(map(_ENTITY_TAG.fullmatch, label_names)) and {*map(_iobes, label_names)} != {OUTSIDE}


def main_metric(label_names: Sequence[str]) -> str:
    """F1 of entities, or the accuracy of tags of another kind."""
    return "f1" if are_entities(label_names) else "accuracy"


def _iobes(tag: str) -> str:
    """The tag as seqeval knows it."""
    prefix = tag[0].upper()
    return {"L": "E", "U": "S"}.get(prefix, prefix) + tag[1:]


def _separator(tokenizer: PreTrainedTokenizerBase) -> str:
    """What to put before a word so that it is read as in running text: byte-level BPE tells words by their space."""
    text = tokenizer("a a", add_special_tokens=False)["input_ids"]
    words = tokenizer(["a", "a"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    return "" if words == text else " "


@final
@dataclass(frozen=True, kw_only=True)
class TagLayout(Layout):
    """In which columns the words and their tags stand, and what the tags mean.

    Attributes:
        label_ids: label id by the value found in the column of tags, as text.
        labels_of: whose labels these are, as errors name it.
    """

    token_column: str
    tag_column: str
    label_names: tuple[str, ...]
    label_ids: Mapping[str, int]
    labels_of: str
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        tokens, tags = _lists(rows, self.token_column), _lists(rows, self.tag_column)
        for index, (words, row) in enumerate(zip(tokens, tags, strict=True)):
            if len(words) != len(row):
                raise rows.error(index, f"expected a tag for every token, found {len(words)} tokens, {len(row)} tags")
        if not any(tokens):
            raise UserError(f"{rows.source}: expected at least one token in column '{self.token_column}', found none")
        one_per_row(rows, self.token_column, tokens).texts(self.token_column)
        flat = one_per_row(rows, self.tag_column, tags)
        ids = iter(label_ids(flat, self.tag_column, self.label_ids, labels_of=self.labels_of))
        columns = {
            "tokens": tokens,
            "tags": [[*islice(ids, len(row))] for row in tags],
            "idx": list(range(len(tokens))),
        }
        types = {"tokens": List(Value("string")), "tags": List(Value("int64")), "idx": Value("int64")}
        return Dataset.from_dict(columns, features=Features(types))

    def task(self, **common: Any) -> TokenClassification:
        return TokenClassification(**common, main_metric=main_metric(self.label_names))


def inferred_layout(rows: Rows, flags: Flags) -> TagLayout:
    """The layout of the user's own file. "O" comes first, then the other tags, sorted.

    Raises:
        UserError: columns are missing or ambiguous, or the tags are not names or whole numbers.
    """
    if flags.text_columns is not None and len(flags.text_columns) != 1:
        raise UserError(f"--text_columns: expected one column of tokens, found {shown(flags.text_columns)}")
    tokens = flags.text_columns[0] if flags.text_columns else _only(rows, _TOKEN_COLUMNS, "text_columns")
    column = flags.label_column or _only(rows, _TAG_COLUMNS, "label_column")
    flat = one_per_row(rows, column, _lists(rows, column))
    values = label_values(flat, column)
    for index, value in enumerate(values):
        if value in (_IGNORED, str(_IGNORED)):
            raise flat.error(index, f"column '{column}': expected a tag for every word, found {value}")
    labels = name_labels(rows, column, values, flags, first=OUTSIDE)
    return TagLayout(
        token_column=tokens, tag_column=column, label_names=labels.names, label_ids=labels.ids, labels_of=labels.of
    )


def _only(rows: Rows, names: Sequence[str], flag: str) -> str:
    """The one column of a usual name."""
    found = [name for name in names if name in rows.columns]
    if len(found) != 1:
        seen = f"columns {shown(rows.columns)}" if not found else f"{shown(found)}; choose with --{flag}"
        raise UserError(f"{rows.source}: expected a column {' or '.join(names)} (else --{flag}), found {seen}")
    return found[0]


def _lists(rows: Rows, column: str) -> list[list[Any]]:
    """Lists as they are, and text as the words in it."""
    values = [value.split() if isinstance(value, str) else value for value in rows.column(column)]
    for index, value in enumerate(values):
        if not isinstance(value, list):
            found = "null" if value is None else f"{value!r:.80}"
            raise rows.error(index, f"expected a list or words with spaces in column '{column}', found {found}")
    return values
