"""What pages are put together from; the template lays it out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from contraprune.report.charts import Chart


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of the headline: what it answers, the number, and what it is compared with."""

    question: str
    value: str
    details: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Headers and rows; cells are text."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with charts and tables under it."""

    title: str
    charts: Sequence[Chart] = ()
    table: Table | None = None
    note: str = ""
    open: bool = field(default=True)  # whether a long table is shown without a click


def readable(name: str) -> str:
    """``matthews_correlation`` without underscores."""
    return name.replace("_", " ")


def tokens(shape: str) -> str:
    """``8x128`` in words."""
    texts, _, tokens = shape.partition("x")
    return f"{texts} text{'s' * (texts != '1')} of {tokens} tokens"
