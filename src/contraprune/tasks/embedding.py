"""Sentence embeddings: a model that gives every text a vector, held to its own vectors of before pruning.

Training needs texts and nothing else. What the vectors are worth is measured on pairs of texts with a number that
says how similar they are: the correlation of these numbers with the cosine similarity of the vectors.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features, Value
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModel, PretrainedConfig, PreTrainedTokenizerBase

from contraprune.errors import UserError
from contraprune.objectives import Embedding
from contraprune.pooling import Pooling, pool
from contraprune.tasks.base import Flags, Layout, Task
from contraprune.tasks.files import Rows, shown
from contraprune.tasks.regression import NumberLayout, correlations, numbers
from contraprune.tasks.sentences import SentenceModel, read_sentence_model
from contraprune.tasks.texts import text_columns, tokenize

_TEXT = "text"
_PAIR = ("text1", "text2")
_SCORES = ("label", "labels", "score", "similarity", "similarity_score")


@final
@dataclass(frozen=True, kw_only=True)
class SentenceEmbedding(Task):
    """A vector for each text. ``train`` has different texts (``text``), ``evaluation`` pairs with a similarity
    (``text1``, ``text2``, ``label``); both have ``idx``.

    Attributes:
        sentences: how the model makes a vector of its last hidden states; the usual way before :meth:`for_model`.
    """

    auto_class: ClassVar[type] = AutoModel
    objective = Embedding()
    default_pooling = None

    sentences: SentenceModel = field(default_factory=SentenceModel)

    @property
    def pooling(self) -> Pooling:
        return self.sentences.pooling

    def files(self) -> Mapping[str, str]:
        return self.sentences.files

    def model_options(self) -> dict[str, Any]:
        return {}

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        if config.is_encoder_decoder:
            raise UserError(f"{name}: expected an encoder or decoder for sentence embeddings, found both in one model")
        return replace(self, sentences=read_sentence_model(name, config.hidden_size))

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch dim"]:
        return pool(answer.last_hidden_state, features["attention_mask"], pooling=self.pooling).float()

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """A row for each different text of the data set, in the order in which they first appear."""
        texts = list(map(self.sentences.prepare, _different(dataset)))
        rows = Dataset.from_dict({_TEXT: texts, "idx": list(range(len(texts)))})
        return tokenize(rows, tokenizer, (_TEXT,), max_length=max_length)

    def classes(self, encoded: Dataset) -> None:
        return None

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """Correlations of the cosine similarity of two texts with the similarity the data give them."""
        vectors = np.asarray(outputs, dtype=np.float64)
        units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(min=np.finfo(np.float32).tiny)
        row = {text: index for index, text in enumerate(_different(dataset))}
        first, second = ([row[text] for text in dataset[column]] for column in _PAIR)
        return correlations((units[first] * units[second]).sum(axis=1), np.asarray(dataset["label"]))


def _different(dataset: Dataset) -> list[str]:
    """Every text of a data set, of texts or of pairs, once."""
    return _once([dataset[column] for column in (_TEXT, *_PAIR) if column in dataset.column_names])


def _once(columns: Sequence[Iterable[str]]) -> list[str]:
    """Every text once, row by row."""
    return list(dict.fromkeys(chain.from_iterable(zip(*columns, strict=True))))


@final
@dataclass(frozen=True, kw_only=True)
class EmbeddingLayout(Layout):
    """In which columns the texts stand, and in evaluation data the similarity; None: found by their usual names.

    Training data may have one column of texts or two, and other columns than evaluation data.

    Attributes:
        limits: the lowest and highest similarity there is; None for any.
    """

    text_columns: tuple[str, ...] | None = None
    label_column: str | None = None
    limits: tuple[float, float] | None = None
    label_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        label = self.label_column or next((name for name in _SCORES if name in rows.columns), _SCORES[0])
        asked = self.text_columns
        if asked and len(asked) == 1 and asked[0] not in rows.columns:
            asked = None  # this is the column of the training data
        columns = text_columns(rows, asked, label)
        if len(columns) != len(_PAIR):
            raise UserError(
                f"{rows.source}: expected pairs of texts to score embeddings with, found one column {shown(columns)}; "
                "name both with --text_columns"
            )
        texts = {name: rows.texts(column) for name, column in zip(_PAIR, columns, strict=True)}
        content = {**texts, "label": numbers(rows, label, self.limits), "idx": list(range(len(rows.values)))}
        types = dict.fromkeys(_PAIR, Value("string")) | {"label": Value("float32"), "idx": Value("int64")}
        return Dataset.from_dict(content, features=Features(types))

    def training(self, rows: Rows) -> Dataset:
        """Every text once, whichever column it stands in."""
        asked = self.text_columns
        if asked and len(asked) > 1 and not set(asked) & set(rows.columns):
            asked = None  # these are the pairs of the evaluation data
        texts = _once([rows.texts(column) for column in text_columns(rows, asked)])
        types = Features({_TEXT: Value("string"), "idx": Value("int64")})
        return Dataset.from_dict({_TEXT: texts, "idx": list(range(len(texts)))}, features=types)

    def task(self, **common: Any) -> SentenceEmbedding:
        return SentenceEmbedding(**common, main_metric="spearman")


def inferred_layout(rows: Rows, flags: Flags) -> EmbeddingLayout:
    """The layout of the user's own files: each file's columns are looked for in that file.

    Raises:
        UserError: a single text column is asked for that the first of the files lacks.
    """
    asked = tuple(flags.text_columns) if flags.text_columns else None
    if asked and len(asked) == 1:
        rows.column(asked[0])
    return EmbeddingLayout(text_columns=asked, label_column=flags.label_column)


def layout_of(task: str, layout: Layout) -> EmbeddingLayout:
    """The layout of a named task for embeddings: pairs with a similarity are scored, their texts trained on.

    Raises:
        UserError: the task has no such pairs.
    """
    if not isinstance(layout, NumberLayout) or len(layout.text_columns) != len(_PAIR):
        raise UserError(
            f"--task_type embedding: expected a --task of pairs with a similarity (stsb), found {task}; its texts can "
            "be trained on as --train_file, beside a --validation_file of such pairs"
        )
    return EmbeddingLayout(
        text_columns=layout.text_columns, label_column=layout.label_column, limits=layout.limits, splits=layout.splits
    )
