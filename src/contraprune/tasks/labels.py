"""Labels: read from files, and matched by name with those of a model."""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from contraprune.errors import UserError
from contraprune.tasks.files import Rows, shown

_WHOLE = re.compile(r"0|-?[1-9][0-9]*")  # "007" is a name: it would not come back from a number
_DECIMAL = re.compile(r"-?[0-9]+\.?[0-9]*")


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


def positions(values: Sequence[int | str], names: Sequence[str]) -> dict[int | str, int] | None:
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


def label_values(rows: Rows, column: str) -> list[int] | list[str]:
    """The label column with one type throughout; in csv and tsv whole numbers become numbers if all are."""
    values = rows.column(column)
    if not rows.typed:
        if all(re.fullmatch(_WHOLE, value) for value in values):
            values = [int(value) for value in values]
        elif all(re.fullmatch(_DECIMAL, value) for value in values) and any("." in value for value in values):
            values = [float(value) for value in values]
    for index, value in enumerate(values):
        if problem := _label_problem(value):
            problem += "; for real numbers pass --task_type regression" if type(value) is float else ""
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
        return f"expected a name or a whole number, found {value}"
    if type(value) not in (int, str):
        return f"expected a name or a whole number, found {value!r:.80}"
    return None


def label_ids(rows: Rows, column: str, ids_of: Mapping[int | str, int], *, labels_of: str) -> list[int]:
    """The id of every label of a column.

    Args:
        ids_of: label id by the value found in the column.
        labels_of: whose labels these are, as errors name it.

    Raises:
        UserError: a label is missing or unknown.
    """
    ids = []
    for index, value in enumerate(rows.column(column)):
        key = value
        if not rows.typed and value not in ids_of and re.fullmatch(_WHOLE, value):
            key = int(value)
        problem = _label_problem(key)
        if problem is None and key not in ids_of:
            known = shown(list(ids_of))
            problem = f"expected a label of {labels_of} ({known}), found {value!r:.80}"
        if problem:
            raise rows.error(index, f"column '{column}': {problem}")
        ids.append(ids_of[key])
    return ids
