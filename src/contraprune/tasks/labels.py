"""Labels: read from files, and matched by name with those of a model."""

import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from contraprune.errors import UserError
from contraprune.tasks.base import Flags
from contraprune.tasks.files import Rows, shown

_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,999}))(?:\.0*)?")  # "007" is a name: it would not come back from a number
_DECIMAL = re.compile(r"-?[0-9]+\.?[0-9]*")
UNLABELLED = "-1, which marks unlabelled rows such as GLUE's test splits"
_BOOLEANS = ("false", "true")


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
    if len(task_names) == len(model_names) and (nameless(task_names) or nameless(model_names)):
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(task_names, model_names, strict=True))
        warnings.warn(f"{model}: labels are matched by position, for want of names: {pairs}", stacklevel=2)
        return list(range(len(task_names)))
    raise UserError(
        f"{model}: expected a model with the {len(task_names)} labels {shown(task_names)}, "
        f"found {len(model_names)}: {shown(model_names)}"
    )


def positions(values: Sequence[int | str], names: Sequence[str]) -> dict[str, int] | None:
    """The position among ``names`` of each value, as text, if all are names, else if all are positions.

    Names are compared as in :func:`match_labels`. Numbers are positions only where no name is another's number.
    """
    known = {_spellings(name)[-1]: i for i, name in enumerate(names)} | {name: i for i, name in enumerate(names)}
    if all(str(value) in known for value in values):
        return {str(value): known[str(value)] for value in values}
    if all(isinstance(value, int) and 0 <= value < len(names) for value in values):
        return {str(value): int(value) for value in values} if counted(names) else None
    spelled = [_loose(name) for name in names]
    if len(set(spelled)) == len(spelled) and all(isinstance(v, str) and _loose(v) in spelled for v in values):
        return {str(value): spelled.index(_loose(str(value))) for value in values}
    return None


def counted(names: Sequence[str]) -> bool:
    """Whether names can be told from positions: none reads as the position of another, as all of 1, 2, 3 do."""
    ids = {str(i): i for i in range(len(names))}
    return all(ids.get(_spellings(name)[-1], i) == i for i, name in enumerate(names))


def _loose(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def nameless(names: Sequence[str]) -> bool:
    """Whether labels are only numbered: LABEL_0, LABEL_1, … or 0, 1, …"""
    return any(list(names) == [f"{prefix}{i}" for i in range(len(names))] for prefix in ("LABEL_", ""))


@dataclass(frozen=True, kw_only=True)
class Labels:
    """The labels of a file.

    Attributes:
        names: the name of each label id.
        ids: label id by the value found in the file, as text: 1 and "1" are the same label.
        of: whose labels these are, as errors name it.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]
    of: str


def name_labels(
    rows: Rows, column: str, values: Sequence[int | str], flags: Flags, *, first: str | None = None
) -> Labels:
    """What the labels of the user's own file are called.

    ``flags.labels``, which the values are, or are positions in; else ``flags.known_labels`` (a model's) where
    that is true of all values, because a file to evaluate on need not have every label; else the values, sorted.

    Args:
        values: all labels of the column.
        first: the name that comes before the sorted others.

    Raises:
        UserError: there are fewer than two labels.
    """
    if flags.labels is not None:
        names = tuple(flags.labels)
        if len(set(names)) < max(2, len(names)):
            raise UserError(f"--labels: expected at least two different names, found {shown(names)}")
        return Labels(names=names, ids=named_ids(names), of="--labels")
    distinct = sorted({*values}, key=lambda value: (value != first, value))
    known = positions(distinct, flags.known_labels)
    if flags.known_labels and known is not None:
        return Labels(names=tuple(flags.known_labels), ids=known, of=rows.source)
    if len(distinct) < 2:
        expected = f"expected at least two different labels in column '{column}'"
        raise UserError(f"{rows.source}: {expected}, found {'only ' + shown(distinct) if distinct else 'none'}")
    names = tuple(map(str, distinct))
    return Labels(names=names, ids={name: i for i, name in enumerate(names)}, of=rows.source)


def named_ids(names: Sequence[str]) -> dict[str, int]:
    """Label id by name, and by position where that cannot be another's name."""
    numbered = counted(names)
    return {text: i for i, name in enumerate(names) for text in ([str(i), name] if numbered else [name])}


def one_per_row(rows: Rows, column: str, lists: Sequence[Sequence[Any]]) -> Rows:
    """The values of a column of lists as rows of their own, each numbered as the row it stands in."""
    numbers = [number for number, values in zip(rows.numbers, lists, strict=True) for _ in values]
    values = [{column: value} for row in lists for value in row]
    return Rows(source=rows.source, values=values, numbers=numbers, unit=rows.unit, typed=rows.typed)


def label_values(rows: Rows, column: str) -> list[int] | list[str]:
    """The label column with one type throughout: whole numbers where all are, written as numbers or as text.

    1.0 is the whole number 1, as tables with gaps write it. Booleans are the names "false" and "true". Where all is
    text, as in csv and tsv, they are so only if all values are.
    """
    values = rows.column(column)
    if all(isinstance(value, str) for value in values):
        values = _read_text(values, typed=rows.typed)
    for index, value in enumerate(values):
        if problem := _label_problem(value):
            raise rows.error(index, f"column '{column}': {problem}")
        if _is_number(value) is not _is_number(values[0]):
            expected = "expected all labels to be names or all to be whole numbers"
            raise rows.error(index, f"column '{column}': {expected}, found {values[0]!r} before {value!r}")
    return [_plain(value) for value in values]


def _read_text(values: list[str], *, typed: bool) -> list[Any]:
    """Text as the numbers or booleans that all of it is; in a format with types only as whole numbers."""
    if all(_WHOLE.fullmatch(value) and not (typed and "." in value) for value in values):
        return [int(_spellings(value)[-1]) for value in values]
    if typed:
        return values
    if all(_DECIMAL.fullmatch(value) for value in values) and not all(float(value).is_integer() for value in values):
        return [float(value) for value in values]
    return [value.lower() for value in values] if all(value.lower() in _BOOLEANS for value in values) else values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> Any:
    """A label as a name or as a whole number."""
    return str(value).lower() if isinstance(value, bool) else int(value) if isinstance(value, float) else value


def _spellings(value: Any) -> list[str]:
    """How a value may be written among the names of labels: as it stands first."""
    text = str(value)
    if isinstance(value, float) and value.is_integer():
        return [text, str(int(value))]
    if whole := _WHOLE.fullmatch(text):
        return [text, str(int(whole[1]))]
    return [text, text.lower()] if text.lower() in _BOOLEANS else [text]


def _label_problem(value: Any) -> str | None:
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):  # the gaps of a table
        return "expected a label, found none"
    if "-1" in _spellings(value):
        return f"expected a label, found {UNLABELLED}"
    if isinstance(value, float) and not value.is_integer():
        return f"expected a name or a whole number, found {value}; for real numbers pass --task_type regression"
    if not isinstance(value, int | float | str):
        several = "; for several labels of one text pass --task_type multi_label" if isinstance(value, list) else ""
        return f"expected a name or a whole number, found {value!r:.80}{several}"
    return None


def label_ids(rows: Rows, column: str, ids_of: Mapping[str, int], *, labels_of: str) -> list[int]:
    """The id of every label of a column.

    Args:
        ids_of: label id by the value found in the column, as text.
        labels_of: whose labels these are, as errors name it.

    Raises:
        UserError: a label is missing or unknown.
    """
    ids = []
    for index, value in enumerate(rows.column(column)):
        problem = _label_problem(value)
        known = [ids_of[text] for text in _spellings(value) if text in ids_of]
        if problem is None and not known:
            problem = f"expected a label of {labels_of} ({shown(ids_of)}), found {value!r:.80}"
        if problem:
            raise rows.error(index, f"column '{column}': {problem}")
        ids.append(known[0])
    return ids
