"""Data sets, from the flags that name them to what a model reads."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from contraprune.errors import UserError
from contraprune.tasks import (
    classification,
    conll,
    embedding,
    glue,
    multi_label,
    question_answering,
    regression,
    squad,
    token_classification,
    toy,
)
from contraprune.tasks.base import Flags, Layout, Task, build
from contraprune.tasks.files import Reader, Rows, read, read_directory, shown
from contraprune.tasks.question_answering import QuestionLayout
from contraprune.tasks.spans import AnswerOptions

__all__ = ["TASKS", "TASK_TYPES", "Task", "load_task", "published_name"]

_LAYOUTS: Mapping[str, Layout] = {**glue.LAYOUTS, **squad.LAYOUTS, "toy": toy.LAYOUT}
TASKS = tuple(sorted(_LAYOUTS))
"""The names for ``--task``."""

_INFERRED: Mapping[str, Callable[[Rows, Flags], Layout]] = {
    "classification": classification.inferred_layout,
    "regression": regression.inferred_layout,
    "multi_label": multi_label.inferred_layout,
    "token_classification": token_classification.inferred_layout,
    "question_answering": question_answering.inferred_layout,
    "embedding": embedding.inferred_layout,
}
_OF_NAMED: Mapping[str, Callable[[str, Layout], Layout]] = {"embedding": embedding.layout_of}
_OF_FILES = ("text_columns", "label_column")
TASK_TYPES = tuple(_INFERRED)
"""The names for ``--task_type``: what the data are for."""

# Endings that only some kinds of task can read, and flags that only some have a use for.
_READERS: Mapping[str, Mapping[str, Reader]] = {"token_classification": conll.READERS}
_ONLY_FOR: Mapping[str, tuple[str, ...]] = {
    "labels": ("classification", "multi_label", "token_classification"),
    "label_columns": ("multi_label",),
    "label_separator": ("multi_label",),
}


def load_task(
    *,
    task: str | None,
    task_type: str | None,
    data_dir: str | None,
    train_file: str | None,
    validation_file: str | None,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    labels: Sequence[str] | None = None,
    label_columns: Sequence[str] | None = None,
    label_separator: str | None = None,
    max_train_samples: int | None,
    max_eval_samples: int | None,
    seed: int,
    need_train: bool = True,
    need_evaluation: bool = True,
    known_labels: Sequence[str] = (),
    answering: AnswerOptions | None = None,
) -> Task:
    """Load a named task (from ``data_dir``, else from the hub; "toy" is generated) or the user's own files.

    Only what is needed is loaded, except that ``train_file`` is always read where given, because the labels
    are defined by it; ``task_type`` says what the files are for (one of ``TASK_TYPES``; None: classification), or
    for "embedding" what a named task is for, if not for what it was made for.
    ``labels`` names the labels of files that number them or lack some; ``label_columns`` and ``label_separator``
    say how sets of labels stand in a file.
    ``max_train_samples`` and ``max_eval_samples`` keep the first rows of each split.
    ``seed`` draws the training rows of "toy" and nothing else. ``known_labels`` are a model's labels, which the
    user's own files may have fewer of. ``answering`` is for question answering alone.

    Raises:
        UserError: flags contradict each other or are missing, or the data cannot be used.
    """
    for flag, limit in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if limit is not None and limit < 1:
            raise UserError(f"--{flag}: expected at least 1, found {limit}")
    source = _Source(
        task=task,
        task_type=task_type,
        data_dir=data_dir,
        train_file=train_file,
        validation_file=validation_file,
        text_columns=text_columns,
        label_column=label_column,
        labels=_split(labels),
        label_columns=_split(label_columns),
        label_separator=label_separator,
        known_labels=known_labels,
    )
    _check(source)
    if task is None:
        name, layout, splits = _own_files(source, train=need_train, evaluation=need_evaluation)
    else:
        name, layout = task, _LAYOUTS[task]
        if task_type is not None:
            layout = _OF_NAMED[task_type](task, layout)
        splits = _named(task, data_dir, seed, train=need_train, evaluation=need_evaluation)
    layout = _answering(layout, answering or AnswerOptions(), name)
    return build(name, layout, splits, max_train_samples=max_train_samples, max_eval_samples=max_eval_samples)


def published_name(task: str | None) -> tuple[str | None, str | None]:
    """Name and configuration on the hub of the data set of a ``--task``; None where it is not there."""
    if task in glue.LAYOUTS:
        return glue.REPOSITORY, task
    return (f"{squad.OWNER}/{task}", None) if task in squad.LAYOUTS else (None, None)


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The flags that say where the data are, under their own names, and the labels they are read for."""

    task: str | None
    task_type: str | None
    data_dir: str | None
    train_file: str | None
    validation_file: str | None
    text_columns: Sequence[str] | None
    label_column: str | None
    labels: Sequence[str] | None
    label_columns: Sequence[str] | None
    label_separator: str | None
    known_labels: Sequence[str]

    def given(self, *flags: str) -> list[str]:
        return [f"--{flag}" for flag in flags if getattr(self, flag) is not None]


def _split(names: Sequence[str] | None, whole: Collection[str] = ()) -> list[str] | None:
    """Names that may be joined by commas, other than those of ``whole``."""
    if names is None:
        return None
    return [part.strip() for name in names for part in ([name] if name in whole else name.split(","))]


def _check(source: _Source) -> None:
    files = source.given("train_file", "validation_file")
    if source.task_type is not None and source.task_type not in TASK_TYPES:
        raise UserError(f"--task_type: expected one of {shown(TASK_TYPES)}, found '{source.task_type}'")
    if source.task is None:
        if not files:
            found = " and ".join(source.given("data_dir")) or "none of them"
            raise UserError(f"expected --task, or --train_file and --validation_file, found {found}")
        if source.data_dir is not None:
            raise UserError(f"--data_dir: expected with --task only, found with {' and '.join(files)}")
    elif source.task not in _LAYOUTS:
        raise UserError(f"--task: expected one of {shown(TASKS)}, found '{source.task}'")
    elif extra := files + source.given(*["task_type"] * (source.task_type not in _OF_NAMED), *_OF_FILES, *_ONLY_FOR):
        raise UserError(f"{' and '.join(extra)}: expected without --task, found with --task {source.task}")
    task_type = source.task_type or "classification"
    for flag, types in _ONLY_FOR.items():
        if source.given(flag) and task_type not in types:
            raise UserError(f"--{flag}: only for --task_type {' or '.join(types)}, found {task_type}")


def _named(task: str, data_dir: str | None, seed: int, *, train: bool, evaluation: bool) -> dict[str, Rows]:
    if task in squad.LAYOUTS:
        return squad.load(task, data_dir, train=train, evaluation=evaluation)
    if task != "toy":
        return glue.load(task, data_dir, train=train, evaluation=evaluation)
    if data_dir is not None:
        return read_directory(Path(data_dir), train=train, evaluation=toy.LAYOUT.splits if evaluation else ())
    needed = {"train": train, "validation": evaluation}
    return {split: rows for split, rows in toy.load(seed).items() if needed[split]}


def _own_files(source: _Source, *, train: bool, evaluation: bool) -> tuple[str, Layout, dict[str, Rows]]:
    """Name, layout and splits. The labels are those of the first file given, training before validation."""
    for flag, needed in (("train_file", train), ("validation_file", evaluation)):
        if needed and not source.given(flag):
            raise UserError(f"--{flag}: expected a data file, found none")
    task_type = source.task_type or "classification"
    readers = _READERS.get(task_type)
    splits = {}
    if source.train_file is not None:
        splits["train"] = read(Path(source.train_file), readers)
    if source.validation_file is not None and (evaluation or not splits):
        splits["validation"] = read(Path(source.validation_file), readers)
    first = next(iter(splits.values()))
    flags = Flags(
        text_columns=_split(source.text_columns, {column for rows in splits.values() for column in rows.columns}),
        label_column=source.label_column,
        labels=source.labels,
        label_columns=source.label_columns,
        label_separator=source.label_separator,
        known_labels=source.known_labels,
    )
    layout = _INFERRED[task_type](first, flags)
    if not train:
        splits.pop("train", None)
    if not evaluation:
        splits.pop("validation", None)
    return Path(first.source).stem, layout, splits


def _answering(layout: Layout, options: AnswerOptions, name: str) -> Layout:
    """The layout with options that only question answering has; those that would have no effect are refused."""
    changed = [f.name for f in fields(options) if getattr(options, f.name) != f.default]
    if not isinstance(layout, QuestionLayout):
        if changed:
            found = f"--{changed[0]} {getattr(options, changed[0])}"
            raise UserError(f"{found}: only for question answering, not for {name}")
        return layout
    if "null_threshold" in changed and layout.unanswerable is False:
        raise UserError(f"--null_threshold {options.null_threshold}: every question of {name} has an answer")
    return replace(layout, options=options)
