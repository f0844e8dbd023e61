"""Extractive question answering: the answer to a question is a part of its context."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Self, final

import numpy as np
from datasets import Dataset, Features, List, Value
from jaxtyping import Float
from torch import Tensor, stack
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from contraprune.errors import UserError
from contraprune.objectives import Span
from contraprune.tasks.base import Collator, Flags, Layout, Task
from contraprune.tasks.files import Rows, shown
from contraprune.tasks.spans import AnswerOptions, Windows, best_answers
from contraprune.tasks.squad_metrics import squad_v1, squad_v2
from contraprune.tasks.texts import mapped
from contraprune.tasks.windows import OF_METRICS, WindowMaker

_TYPES = Features(
    {
        "question": Value("string"),
        "context": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
        "idx": Value("int64"),
    }
)


@final
@dataclass(frozen=True, kw_only=True)
class QuestionAnswering(Task):
    """A span of the context for each question.

    ``train`` and ``evaluation`` have ``question``, ``context``, ``answers`` (the lists ``text`` and
    ``answer_start``, in characters; empty without an answer) and ``idx``. A context that is too long is read in
    overlapping windows. Where a window does not hold the answer, start and end are the first token.

    Attributes:
        unanswerable: whether questions may have no answer; None for: if one of those evaluated on has none.
    """

    auto_class: ClassVar[type] = AutoModelForQuestionAnswering
    objective = Span()
    default_max_length: ClassVar[int] = 384
    default_pooling = "cls"

    unanswerable: bool | None
    options: AnswerOptions

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 2}

    def for_model(self, config: PretrainedConfig, name: str) -> Self:
        if config.num_labels != 2:
            found = f"found one of {config.num_labels} labels"
            raise UserError(f"{name}: expected a model for question answering (2: start and end), {found}")
        return self

    def outputs(self, answer: Any, features: Mapping[str, Tensor]) -> Float[Tensor, "batch length 2"]:
        return stack([answer.start_logits, answer.end_logits], dim=-1).float()

    def encode(self, dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Dataset:
        """A row per window; the columns that only metrics need are left out of the training split's.

        Raises:
            UserError: the tokenizer has no character offsets, or windows of this length cannot overlap as asked.
        """
        windows = WindowMaker(
            tokenizer,
            max_length=max_length,
            overlap=self.options.doc_stride,
            of_metrics=dataset is not self.train,
        )
        encoded = mapped(dataset, windows, remove_columns=dataset.column_names)
        return encoded.add_column("idx", np.arange(len(encoded)))

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Collator:
        """Padding goes right, also where the tokenizer would put it left: positions stay what they are."""
        tokenizer = deepcopy(tokenizer)
        tokenizer.padding_side = "right"
        return DataCollatorWithPadding(tokenizer)

    def classes(self, encoded: Dataset) -> None:
        return None

    def metrics(self, outputs: Sequence[np.ndarray], encoded: Dataset, dataset: Dataset) -> dict[str, float]:
        """Those of SQuAD 1.1; of SQuAD 2.0 where questions may have no answer (``tasks.squad_metrics``)."""
        options = self.options
        best = best_answers(
            outputs,
            Windows(*(encoded[column][:] for column in OF_METRICS)),
            n_best=options.n_best,
            max_answer_length=options.max_answer_length,
        )
        texts = [context[answer.start : answer.end] for context, answer in zip(dataset["context"], best, strict=True)]
        truths = [answers["text"] for answers in dataset["answers"]]
        if self.unanswerable is False or (self.unanswerable is None and all(truths)):
            return squad_v1(texts, truths)
        margins = np.array([answer.null_score - answer.score for answer in best])
        return squad_v2(texts, truths, margins, null_threshold=options.null_threshold)


@final
@dataclass(frozen=True, kw_only=True)
class QuestionLayout(Layout):
    """In which columns question, context and answers stand.

    Attributes:
        unanswerable: as in :class:`QuestionAnswering`; False refuses questions without an answer.
        published: whether the positions of the answers are to be taken as they are.
    """

    question_column: str = "question"
    context_column: str = "context"
    answers_column: str = "answers"
    unanswerable: bool | None = None
    published: bool = False
    options: AnswerOptions = AnswerOptions()
    label_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ("validation",)

    def dataset(self, rows: Rows) -> Dataset:
        questions, contexts = rows.texts(self.question_column), rows.texts(self.context_column)
        answers = rows.column(self.answers_column)
        if not rows.typed:
            answers = [_from_text(text) for text in answers]
        for index, (context, found) in enumerate(zip(contexts, answers, strict=True)):
            if wrong := self._problem(context, found):
                raise rows.error(index, f"column '{self.answers_column}': {wrong}")
        columns = {
            "question": questions,
            "context": contexts,
            "answers": [{name: found[name] for name in ("text", "answer_start")} for found in answers],
            "idx": list(range(len(questions))),
        }
        return Dataset.from_dict(columns, features=_TYPES)

    def task(self, **common: Any) -> QuestionAnswering:
        return QuestionAnswering(**common, main_metric="f1", unanswerable=self.unanswerable, options=self.options)

    def _problem(self, context: str, answers: Any) -> str | None:
        if not _is_answers(answers):
            return f'expected {{"text": ["…"], "answer_start": [0]}} with as many of both, found {answers!r:.80}'
        if self.unanswerable is False and not answers["text"]:
            return "expected an answer, found none (--task squad_v2 has questions without)"
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            there = context[start : start + len(text)] if start >= 0 else ""
            if not self.published and (there != text or not text.strip()):
                return f"expected the answer {text!r:.80} at character {start} of the context, found {there!r:.80}"
        return None


def _from_text(text: Any) -> Any:
    """The JSON in a field of a table; what is none stays as it is, for the check to show."""
    try:
        return json.loads(text)
    except (ValueError, TypeError):
        return text


def _is_answers(value: Any) -> bool:
    if type(value) is not dict or not {"text", "answer_start"} <= value.keys():
        return False
    texts, starts = value["text"], value["answer_start"]
    return (
        type(texts) is list
        and type(starts) is list
        and len(texts) == len(starts)
        and all(type(text) is str for text in texts)
        and all(type(start) is int for start in starts)
    )


def inferred_layout(rows: Rows, flags: Flags) -> QuestionLayout:
    """The layout of the user's own file: columns ``question``, ``context`` and ``answers``, or those asked for.

    Raises:
        UserError: other than two text columns were asked for.
    """
    columns = tuple(flags.text_columns or ("question", "context"))
    if len(columns) != 2:
        raise UserError(f"--text_columns: expected the columns of question and context, found {shown(columns)}")
    return QuestionLayout(
        question_column=columns[0], context_column=columns[1], answers_column=flags.label_column or "answers"
    )
