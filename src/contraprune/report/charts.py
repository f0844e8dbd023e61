"""The charts of a report: lines, points with error bars, bars, heat maps, maps of points."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from contraprune.report.svg import BOTTOM, LEFT, RIGHT, TOP, WIDTH, Axis, drawing, element, frame, number, text

HEIGHT = 230
MOST_POINTS = 150  # of a line: more cannot be told apart on a screen
COLOURS = 8
_BESIDE = 6.0  # between points of two series at the same place, so that their error bars can be told apart


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line or one set of points.

    Attributes:
        points: (x, y), x rising.
        errors: half the length of each point's error bar, None for none.
        colour: which colour of the page's palette.
        dashed: drawn dashed.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    errors: Sequence[float | None] = ()
    dashed: bool = False
    steps: bool = False  # hold each value until the next


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A picture with its heading, legend and a line of explanation."""

    title: str
    picture: Markup
    legend: Sequence[tuple[str, str]] = ()  # (classes of the swatch, name)
    note: str = ""


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most ``MOST_POINTS`` points: means over runs of neighbours, at the last x of each."""
    size = math.ceil(len(points) / MOST_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)] if size else []
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
    last: float,
    boundaries: Sequence[float] = (),
    zero: bool = False,
    note: str = "",
) -> Chart:
    """Lines over steps; a strip at every x shows all values there when pointed at.

    Args:
        reference: name and height of a dashed horizontal line.
        last: x where the horizontal axis ends; it begins at 0.
        boundaries: x of vertical lines, where a new stage begins.
        zero: the vertical axis begins at zero.
    """
    lines = [(one, thinned(one.points)) for one in series]
    ys = [y for _, points in lines for _, y in points] + ([reference[1]] if reference else [])
    horizontal = _up_to(Axis.over([0.0, last], x_label, start=LEFT, end=WIDTH - RIGHT), last)
    vertical = Axis.over(ys, y_label, start=HEIGHT - BOTTOM, end=TOP, zero=zero)
    parts = frame(HEIGHT, horizontal, vertical)
    for x in boundaries:
        at = horizontal(x)
        parts.append(element("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="boundary"))
    if reference:
        y = vertical(reference[1])
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="reference"))
    for one, points in lines:
        parts.append(_line(one, points, horizontal, vertical))
    parts += _strips(lines, reference, horizontal, x_label)
    legend = [(_swatch(one), one.name) for one, _ in lines]
    if reference:
        legend.append(("swatch reference", reference[0]))
    return Chart(title=title, picture=drawing(HEIGHT, *parts, label=title), legend=legend, note=note)


def _up_to(axis: Axis, last: float) -> Axis:
    """The axis that ends where the lines do: steps beyond the end of a run mean nothing."""
    kept = tuple(tick for tick in axis.ticks if tick <= last)
    return Axis(label=axis.label, low=0.0, high=last, start=axis.start, end=axis.end, ticks=kept)


def _swatch(one: Series) -> str:
    return f"swatch c{one.colour % COLOURS}{' dashed' if one.dashed else ''}"


def _line(
    one: Series, points: Sequence[tuple[float, float]], horizontal: Axis, vertical: Axis, beside: float = 0.0
) -> Markup:
    corners = [(horizontal(x) + beside, vertical(y)) for x, y in points]
    if one.steps:
        corners = [corner for a, b in _pairs(corners) for corner in (a, (b[0], a[1]))] + corners[-1:]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in corners)
    classes = f"line c{one.colour % COLOURS}{' dashed' if one.dashed else ''}"
    if len(points) == 1:
        return element("circle", cx=corners[0][0], cy=corners[0][1], r=3.5, class_=f"dot c{one.colour % COLOURS}")
    return element("path", d=path, class_=classes)


def _pairs(items: Sequence[tuple[float, float]]) -> Iterable[tuple[tuple[float, float], tuple[float, float]]]:
    return itertools.pairwise(items)


def _strips(
    lines: Sequence[tuple[Series, Sequence[tuple[float, float]]]],
    reference: tuple[str, float] | None,
    horizontal: Axis,
    x_label: str,
) -> list[Markup]:
    found: dict[float, list[str]] = {}
    for one, points in lines:
        for x, y in points:
            found.setdefault(x, []).append(f"{one.name}: {y:.4g}")
    xs = sorted(found)
    at = [horizontal(x) for x in xs]
    edges = [LEFT, *((a + b) / 2 for a, b in itertools.pairwise(at)), WIDTH - RIGHT]
    shared = [f"{reference[0]}: {reference[1]:.4g}"] if reference else []
    return [
        element(
            "rect",
            element("title", "\n".join([f"{x_label} {x:g}", *found[x], *shared])),
            x=float(left),
            y=TOP,
            width=max(0.0, float(right - left)),
            height=HEIGHT - TOP - BOTTOM,
            class_="strip",
        )
        for x, left, right in zip(xs, edges, edges[1:], strict=False)
    ]


def point_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    reference: tuple[str, float] | None = None,
    note: str = "",
) -> Chart:
    """Points with error bars, joined by lines; the horizontal axis is logarithmic where values span a factor of 4.

    Series stand a little beside each other.
    """
    xs = sorted({x for one in series for x, _ in one.points})
    ys = [y + sign * (error or 0) for one in series for (_, y), error in zip(one.points, _errors(one), strict=True)
          for sign in (-1, 1)]  # fmt: skip
    log = xs[0] > 0 and xs[-1] / xs[0] >= 4
    horizontal = (
        Axis.over(xs, x_label, start=LEFT, end=WIDTH - RIGHT, log=True, ticks=_apart(xs))
        if log
        else _padded(xs, x_label)
    )
    vertical = Axis.over(ys + ([reference[1]] if reference else []), y_label, start=HEIGHT - BOTTOM, end=TOP)
    parts = frame(HEIGHT, horizontal, vertical)
    if reference:
        y = vertical(reference[1])
        parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="reference"))
    for place, one in enumerate(series):
        beside = (place - (len(series) - 1) / 2) * min(_BESIDE, 24 / len(series))
        if len(one.points) > 1:
            parts.append(_line(one, one.points, horizontal, vertical, beside))
        for (x, y), error in zip(one.points, _errors(one), strict=True):
            parts += _point(one, horizontal(x) + beside, y, error, vertical, f"{x_label} {x:.4g}")
    legend = [(_swatch(one), one.name) for one in series]
    if reference:
        legend.append(("swatch reference", reference[0]))
    return Chart(title=title, picture=drawing(HEIGHT, *parts, label=title), legend=legend, note=note)


def _errors(one: Series) -> Sequence[float | None]:
    return one.errors or [None] * len(one.points)


def _padded(xs: Sequence[float], label: str) -> Axis:
    """A linear axis with room beside the first and the last point."""
    margin = (xs[-1] - xs[0]) * 0.08 or abs(xs[0]) * 0.5 or 1.0
    ends = (xs[0] - margin, xs[-1] + margin)
    inside = Axis.over(ends, label, start=LEFT, end=WIDTH - RIGHT)
    ticks = tuple(tick for tick in inside.ticks if ends[0] <= tick <= ends[1])
    return Axis(label=label, low=ends[0], high=ends[1], start=LEFT, end=WIDTH - RIGHT, ticks=ticks)


def _apart(xs: Sequence[float]) -> list[float]:
    """Of rising positive values, those far enough from the one before for a label on a logarithmic axis."""
    total = math.log(xs[-1] / xs[0])
    kept = [xs[0]]
    for x in xs[1:]:
        if math.log(x / kept[-1]) > total * 0.08:
            kept.append(x)
    return kept


def _point(one: Series, x: float, value: float, error: float | None, vertical: Axis, at: str) -> list[Markup]:
    y, colour = vertical(value), f"c{one.colour % COLOURS}"
    parts = []
    if error:
        low, high = vertical(value - error), vertical(value + error)
        parts.append(element("path", d=f"M{x:.1f} {low:.1f}V{high:.1f}", class_=f"line {colour}"))
        for end in (low, high):
            parts.append(element("path", d=f"M{x - 4:.1f} {end:.1f}h8", class_=f"line {colour}"))
    shown = f"{value:.4f}" + (f" ± {error:.4f}" if error else "")
    title = element("title", f"{one.name}\n{at}\n{shown}")
    parts.append(element("circle", title, cx=x, cy=y, r=4, class_=f"dot {colour}"))
    return parts


def bar_chart(
    title: str, bars: Sequence[tuple[str, float, float | None]], *, x_label: str, note: str = "", signed: bool = False
) -> Chart:
    """Horizontal bars from zero, each with its name above it and its value behind the name.

    Args:
        bars: (name, value, half the length of its error bar or None).
        signed: show a plus before values above zero.
    """
    row = 40
    height = TOP - 14 + row * len(bars) + BOTTOM
    ends = [value + sign * (error or 0) for _, value, error in bars for sign in (-1, 1)]
    horizontal = Axis.over([0.0, *ends], x_label, start=12, end=WIDTH - RIGHT, count=4)
    parts = []
    style = "+.4f" if signed else ".4g"
    for tick, label in zip(horizontal.ticks, (number(tick) for tick in horizontal.ticks), strict=True):
        x = horizontal(tick)
        parts.append(element("line", x1=x, x2=x, y1=8, y2=height - BOTTOM, class_="axis" if tick == 0 else "grid"))
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        parts.append(text(x, height - BOTTOM + 17, label, class_="tick", text_anchor=anchor))
    for index, (name, value, error) in enumerate(bars):
        y = 12 + row * index
        shown = format(value, style) + (f" ± {error:.4f}" if error else "")
        parts.append(text(14, y + 11, f"{name}: {shown}", class_="label"))
        left, right = sorted((horizontal(0.0), horizontal(value)))
        parts.append(
            element(
                "rect",
                element("title", f"{name}: {shown}"),
                x=left,
                y=y + 17,
                width=max(1.0, right - left),
                height=12,
                class_="bar c0",
            )
        )
        if error:
            low, high = horizontal(value - error), horizontal(value + error)
            parts.append(element("path", d=f"M{low:.1f} {y + 23}H{high:.1f}", class_="whisker"))
    middle = (12 + WIDTH - RIGHT) / 2
    parts.append(text(middle, height - 6, x_label, class_="label", text_anchor="middle"))
    return Chart(title=title, picture=drawing(height, *parts, label=title), note=note)


def heat_map(
    title: str,
    cells: Float[np.ndarray, "layers columns"],
    *,
    names: Sequence[str],
    counts: Sequence[str],
    x_label: str,
    unit: str,
    per_column: int,
    densest: float,
    note: str = "",
) -> Chart:
    """A row of cells per layer, the denser the more colour; NaN is what was removed.

    Args:
        names: what each row is called.
        counts: what stands at the end of each row.
        unit: what a cell is one of ("head").
        per_column: how many units a column stands for.
        densest: the density that gets full colour.
    """
    layers, columns = cells.shape
    row = 18 if layers <= 16 else 11
    left, right = 26, 10 + 7 * max(map(len, counts))
    height = 8 + row * layers + 22
    width = (WIDTH - left - right) / columns
    gap = 1.0 if width > 4 else 0.0
    parts = []
    for index in range(layers):
        y = 6 + row * index
        parts.append(text(left - 6, y + row / 2 + 4, names[index], class_="tick", text_anchor="end"))
        parts.append(text(WIDTH - 2, y + row / 2 + 4, counts[index], class_="tick", text_anchor="end"))
        for column in range(columns):
            value = cells[index, column]
            gone = bool(np.isnan(value))
            first = column * per_column
            which = f"{unit} {first}" if per_column == 1 else f"{unit}s {first}-{first + per_column - 1}"
            shown = "removed" if gone else f"density {value:.4f}"
            parts.append(
                element(
                    "rect",
                    element("title", f"layer {names[index]}, {which if not gone else unit}: {shown}"),
                    x=left + width * column,
                    y=y,
                    width=width - gap,
                    height=row - 2,
                    class_="gone" if gone else "cell",
                    fill_opacity=None if gone else round(0.08 + 0.92 * float(value) / densest, 3),
                )
            )
    parts.append(text(left, height - 5, x_label, class_="label"))
    legend = [("swatch cell", f"density {densest:.3g}"), ("swatch cell faint", "near 0"), ("swatch gone", "removed")]
    if not np.isnan(cells).any():
        legend.pop()
    return Chart(title=title, picture=drawing(height, *parts, label=title), legend=legend, note=note)


def map_chart(
    title: str,
    points: Float[np.ndarray, "examples 2"],
    labels: Int[np.ndarray, " examples"],
    names: Sequence[str],
    bounds: tuple[Float[np.ndarray, " 2"], Float[np.ndarray, " 2"]],
) -> Chart:
    """Points of the plane coloured by label, in bounds that several maps share; its axes have no unit."""
    low, high = bounds
    span = np.maximum(high - low, 1e-9)
    height = int(np.clip(WIDTH * span[1] / span[0], 140, 300))
    scale = min((WIDTH - 24) / span[0], (height - 24) / span[1])
    place = (points - (low + high) / 2) * scale + np.array([WIDTH / 2, height / 2])
    parts = [element("rect", x=1, y=1, width=WIDTH - 2, height=height - 2, class_="plane")]
    for label, name in enumerate(names):
        dots = [element("circle", cx=float(x), cy=float(height - y), r=3) for x, y in place[labels == label]]
        if dots:
            parts.append(element("g", element("title", name), *dots, class_=f"cloud c{label % COLOURS}"))
    return Chart(title=title, picture=drawing(height, *parts, label=title))
