"""Columns of text: found by their names, and made into what a model reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from contraprune.errors import UserError
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


def text_columns(rows: Rows, asked: Sequence[str] | None, *others: str) -> tuple[str, ...]:
    """The one or two columns of text: those asked for, else those of a usual name.

    Args:
        others: columns that are something else, such as the label's.

    Raises:
        UserError: columns are missing or ambiguous, or bear names that mean something else.
    """
    columns = tuple(asked) if asked else _guess(rows, others)
    if not 1 <= len(columns) <= 2 or len({*columns, *others}) < len(columns) + len(others):
        taken = f" and the label column '{others[0]}'" if others else ""
        raise UserError(f"--text_columns: expected one or two columns of their own, found {shown(columns)}{taken}")
    if used := [column for column in columns if column in _TAKEN]:
        raise UserError(f"--text_columns: expected names other than {shown(_TAKEN)}, found {shown(used)}")
    return columns


def tokenize(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    columns: Sequence[str],
    *,
    max_length: int,
) -> Dataset:
    """Replaces the columns of text by what the tokenizer makes of them, and adds ``length``."""

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(*(list(batch[column]) for column in columns), truncation=True, max_length=max_length)
        return {**encoded, "length": [len(ids) for ids in encoded["input_ids"]]}

    return mapped(dataset, encode, remove_columns=list(columns))


def mapped(dataset: Dataset, function: Callable[..., Any], *, remove_columns: list[str]) -> Dataset:
    """``dataset.map`` in batches that leaves nothing on disk and is silent on small sets."""
    with _progress_bar(len(dataset)):
        return dataset.map(
            function,
            batched=True,
            remove_columns=remove_columns,
            # Nothing is cached on disk, so nothing needs to be found again; without a fingerprint of our
            # own, `datasets` would pickle the tokenizer to compute one, and warn where that fails.
            keep_in_memory=True,
            load_from_cache_file=False,
            new_fingerprint=uuid4().hex,
        )


def _guess(rows: Rows, others: Sequence[str]) -> tuple[str, ...]:
    columns = set(rows.columns) - {*others}
    found = [names for names in _TEXT_COLUMNS if columns.issuperset(names)]
    found = [names for names in found if not any(set(names) < set(more) for more in found)]
    if len(found) == 1:
        return found[0]
    if found:
        choices = " and ".join(",".join(names) for names in found)
        raise UserError(f"{rows.source}: expected one text or pair, found {choices}; choose with --text_columns")
    expected = "expected " + " or ".join(",".join(names) for names in _TEXT_COLUMNS) + " (else --text_columns)"
    other = "; for labels of each token pass --task_type token_classification" if "tokens" in columns else ""
    raise UserError(f"{rows.source}: {expected}, found columns {shown(rows.columns)}{other}")


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
