"""Inline SVG: escaped elements, scales with round ticks, and the frame of a chart.

Colours are classes that the page's style sheet defines for light and dark; sizes are in units of the view box, which
is narrow, so that text stays readable where a chart is shrunk to the width of a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH = 360
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 26, 42


def element(name: str, *children: str, **attributes: object) -> Markup:
    """An element; text and attribute values are escaped, children that are ``Markup`` are not.

    ``_`` in an attribute's name stands for ``-``; ``class_`` is ``class``.
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not children:
        return Markup(f"<{name}{shown}/>")
    return Markup(f"<{name}{shown}>{''.join(escape(child) for child in children)}</{name}>")


def _short(value: object) -> object:
    """Coordinates to a hundredth of a unit."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def drawing(height: int, *children: str, label: str) -> Markup:
    """A whole picture, as wide as its container; ``label`` is what a screen reader says."""
    view = f"0 0 {WIDTH} {height}"
    return element("svg", *children, viewBox=view, role="img", aria_label=label, xmlns="http://www.w3.org/2000/svg")


def text(x: float, y: float, content: str, **attributes: object) -> Markup:
    return element("text", content, x=float(x), y=float(y), **attributes)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A linear or logarithmic scale from values to coordinates.

    Attributes:
        low, high: the values at the ends.
        start, end: the coordinates there.
        ticks: values that get a mark.
    """

    label: str
    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        label: str,
        *,
        start: float,
        end: float,
        log: bool = False,
        ticks: Sequence[float] | None = None,
        zero: bool = False,
        count: int = 5,
    ) -> "Axis":
        """The axis that shows all ``values``, from a round number to a round number.

        Args:
            log: logarithmic, for positive values; it then needs ``ticks``.
            zero: begin at zero.
            count: about how many ticks.
        """
        low, high = min(values), max(values)
        if log:
            assert ticks is not None, "a logarithmic axis is told its ticks"
            margin = (high / low) ** 0.06 if high > low else 1.5
            return cls(
                label=label, low=low / margin, high=high * margin, start=start, end=end, ticks=tuple(ticks), log=True
            )
        low = min(low, 0.0) if zero else low
        marks = tuple(ticks) if ticks is not None else round_ticks(low, high, count)
        low, high = min(low, marks[0]), max(high, marks[-1])
        return cls(label=label, low=low, high=high, start=start, end=end, ticks=marks)

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (self.end - self.start) * (value - low) / (high - low)


def round_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About ``count`` multiples of 1, 2 or 5 times a power of ten that enclose ``low`` and ``high``."""
    if high <= low:
        spread = abs(low) * 0.1 or 1.0
        low, high = low - spread, low + spread
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(round(number * step, 12) for number in range(first, last + 1))


def number(value: float) -> str:
    """A number as people write it: 12,000 or 12k is "12k", 0.000125 is "0.00013"."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            divisor = {"G": 1e9, "M": 1e6, "k": 1e3}[suffix]
            return f"{value / divisor:.3g}{suffix}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"


def tick_labels(axis: Axis) -> list[str]:
    """Labels of the ticks with as many decimals as tell them apart."""
    short = [number(tick) for tick in axis.ticks]
    if axis.log or (max(map(abs, axis.ticks)) >= 1000 and len(set(short)) == len(short)):
        return short
    step = min((b - a for a, b in pairwise(axis.ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{tick:,.{decimals}f}" for tick in axis.ticks]


def frame(height: int, horizontal: Axis, vertical: Axis) -> list[Markup]:
    """Grid lines, ticks and the labels of both axes; that of the vertical one stands above it."""
    bottom = height - BOTTOM
    parts = [text(LEFT - 40, 13, vertical.label, class_="label")]
    for tick, label in zip(vertical.ticks, tick_labels(vertical), strict=True):
        y = vertical(tick)
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(text(LEFT - 6, y + 4, label, class_="tick", text_anchor="end"))
    last_end = -math.inf
    for tick, label in zip(horizontal.ticks, tick_labels(horizontal), strict=True):
        x = horizontal(tick)
        half = 3.4 * len(label)
        if not LEFT - 1 <= x <= WIDTH - RIGHT + 1 or x - half < last_end + 4:
            continue
        last_end = x + half
        parts.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        anchor = "end" if x + half > WIDTH - 2 else "middle"
        at = min(x, WIDTH - 2) if anchor == "end" else x
        parts.append(text(at, bottom + 17, label, class_="tick", text_anchor=anchor))
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(text(middle, height - 6, horizontal.label, class_="label", text_anchor="middle"))
    return parts
