"""Where charts draw what, read back from the SVG."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from contraprune.report.charts import (
    MOST_POINTS,
    Series,
    bar_chart,
    heat_map,
    line_chart,
    map_chart,
    point_chart,
    thinned,
)

SPACE = "{http://www.w3.org/2000/svg}"


def elements(chart, name, of_class):
    root = ElementTree.fromstring(chart.picture)
    return [found for found in root.iter(SPACE + name) if of_class in found.attrib.get("class", "").split()]


def title(found):
    return found.find(SPACE + "title").text


def corners(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path.attrib["d"])]


def test_thinning_takes_means_of_neighbours():
    points = [(float(x), float(x % 11)) for x in range(1, 1001)]
    found = thinned(points)
    size = -(-1000 // MOST_POINTS)
    expected = []
    for start in range(0, 1000, size):
        group = points[start : start + size]
        expected.append((group[-1][0], np.mean([y for _, y in group])))
    np.testing.assert_allclose(found, expected)
    assert len(found) <= MOST_POINTS
    assert thinned(points[:9]) == points[:9]
    assert thinned([]) == []


def test_lines_are_where_their_values_are():
    series = [Series(name="a<b", points=[(1, 0.5), (2, 1.0), (4, 0.0)], colour=3)]
    chart = line_chart("t", series, x_label="step", y_label="loss", last=4, reference=("dense", 0.25), boundaries=[2])
    (line,) = elements(chart, "path", "c3")
    ys = {float(mark.attrib["y1"]) for mark in elements(chart, "line", "grid")}
    top, bottom = min(ys), max(ys)  # the lines of 1.0 and 0.0
    (axis,) = elements(chart, "line", "axis")[-1:]
    left, right = float(axis.attrib["x1"]), float(axis.attrib["x2"])
    expected = [(left + (right - left) * x / 4, bottom - (bottom - top) * y) for x, y in series[0].points]
    np.testing.assert_allclose(corners(line), expected, atol=0.11)
    (reference,) = elements(chart, "line", "reference")
    assert float(reference.attrib["y1"]) == pytest.approx(bottom - (bottom - top) * 0.25, abs=0.1)
    (boundary,) = elements(chart, "line", "boundary")
    assert float(boundary.attrib["x1"]) == pytest.approx((left + right) / 2)
    strips = elements(chart, "rect", "strip")
    assert [title(strip) for strip in strips] == [
        f"step {x}\na<b: {y}\ndense: 0.25" for x, y in ((1, "0.5"), (2, "1"), (4, "0"))
    ]
    assert sum(float(strip.attrib["width"]) for strip in strips) == pytest.approx(right - left, abs=0.1)


def test_error_bars_are_as_long_as_the_errors():
    series = [Series(name="m", points=[(0.03, 0.7), (0.1, 0.8), (0.5, 0.9)], errors=[0.05, None, 0.1], colour=1)]
    chart = point_chart("t", series, x_label="density", y_label="accuracy")
    dots = elements(chart, "circle", "dot")
    assert [title(dot) for dot in dots] == [
        "m\ndensity 0.03\n0.7000 ± 0.0500", "m\ndensity 0.1\n0.8000", "m\ndensity 0.5\n0.9000 ± 0.1000",
    ]  # fmt: skip
    xs = np.array([float(dot.attrib["cx"]) for dot in dots])
    np.testing.assert_allclose(np.diff(xs)[0] / np.diff(xs)[1], np.log(0.1 / 0.03) / np.log(5), rtol=1e-3)
    per_unit = (float(dots[0].attrib["cy"]) - float(dots[2].attrib["cy"])) / 0.2
    bars = [re.fullmatch(r"M[\d.]+ ([\d.]+)V([\d.]+)", path.attrib["d"]) for path in elements(chart, "path", "c1")]
    lengths = [float(bar[1]) - float(bar[2]) for bar in bars if bar]
    assert lengths == pytest.approx([0.1 * per_unit, 0.2 * per_unit], abs=0.2)


def test_points_of_several_series_stand_beside_each_other():
    both = [
        Series(name=name, points=[(0.1, 0.7), (0.5, 0.8)], errors=[0.1, 0.1], colour=n) for n, name in enumerate("ab")
    ]
    chart = point_chart("t", both, x_label="density", y_label="accuracy")
    places = [float(dot.attrib["cx"]) for dot in elements(chart, "circle", "dot")]
    assert places[2] - places[0] == pytest.approx(places[3] - places[1]) == 6
    lines = [path for path in elements(chart, "path", "line") if "L" in path.attrib["d"]]
    assert [corner[0] for line in lines for corner in corners(line)] == pytest.approx(places, abs=0.06)


def test_bars_begin_at_zero():
    chart = bar_chart("t", [("without PrC", -0.02, 0.01), ("without FiC", 0.01, None)], x_label="d", signed=True)
    first, second = elements(chart, "rect", "bar")
    assert title(first) == "without PrC: -0.0200 ± 0.0100"
    end = float(first.attrib["x"]) + float(first.attrib["width"])
    assert end == pytest.approx(float(second.attrib["x"]), abs=0.02)
    assert float(first.attrib["width"]) == pytest.approx(2 * float(second.attrib["width"]), abs=0.05)


def test_a_heat_map_has_a_cell_per_unit_and_blanks_what_is_gone():
    cells = np.array([[1.0, 0.25, np.nan], [0.5, 0.0, 0.125]])
    chart = heat_map(
        "t", cells, names=["0", "1"], counts=["2/3", "3/3"], x_label="heads", unit="head", per_column=1, densest=1.0
    )
    filled = elements(chart, "rect", "cell")
    assert [float(cell.attrib["fill-opacity"]) for cell in filled] == pytest.approx(
        [0.08 + 0.92 * value for value in (1.0, 0.25, 0.5, 0.0, 0.125)], abs=0.0051
    )
    assert title(filled[1]) == "layer 0, head 1: density 0.2500"
    (gone,) = elements(chart, "rect", "gone")
    assert title(gone) == "layer 0, head: removed"
    assert [name for _, name in chart.legend] == ["density 1", "near 0", "removed"]


def test_maps_keep_distances_and_colours():
    points = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    labels = np.array([0, 1, 1, 0])
    chart = map_chart("t", points, labels, ["a", "<b>"], (points.min(0), points.max(0)))
    placed = {}
    for label, name in enumerate(["a", "<b>"]):
        (group,) = elements(chart, "g", f"c{label}")
        assert title(group) == name
        dots = [(float(dot.attrib["cx"]), -float(dot.attrib["cy"])) for dot in group.iter(SPACE + "circle")]
        placed |= dict(zip(np.flatnonzero(labels == label).tolist(), dots, strict=True))
    found = np.array([placed[index] for index in range(4)])
    expected = np.linalg.norm(points[:, None] - points, axis=-1)
    distances = np.linalg.norm(found[:, None] - found, axis=-1)
    np.testing.assert_allclose(distances / distances[0, 1], expected / 4.0, atol=1e-3)
