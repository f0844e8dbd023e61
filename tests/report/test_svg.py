"""Elements that cannot be broken out of, and scales that say what they show."""

import math
from xml.etree import ElementTree

import pytest

from contraprune.report.svg import Axis, drawing, element, number, round_ticks, text, tick_labels

NASTY = """</text><script>alert("x")</script>'&"""


def test_texts_and_attributes_are_escaped():
    picture = drawing(10, text(1, 2, NASTY), element("rect", element("title", NASTY), class_=NASTY), label=NASTY)
    assert "<script" not in picture
    root = ElementTree.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert root.attrib["aria-label"] == NASTY
    assert root.find(f"{space}text").text == NASTY
    assert root.find(f"{space}rect").attrib["class"] == NASTY
    assert root.find(f"{space}rect/{space}title").text == NASTY


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, (0, 0.2, 0.4, 0.6, 0.8, 1)),
        (0.74, 0.86, (0.7, 0.75, 0.8, 0.85, 0.9)),
        (3, 997, (0, 200, 400, 600, 800, 1000)),
        (-0.03, 0.01, (-0.03, -0.02, -0.01, 0, 0.01)),
        (5, 5, (4.4, 4.6, 4.8, 5, 5.2, 5.4, 5.6)),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    assert round_ticks(low, high) == pytest.approx(expected)


def test_an_axis_is_a_straight_line_between_its_ends():
    axis = Axis.over([2.0, 9.5], "x", start=200, end=20)
    assert (axis.low, axis.high) == (2.0, 10.0)
    for value in (2.0, 3.5, 9.5):
        assert axis(value) == pytest.approx(200 - 180 * (value - axis.low) / (axis.high - axis.low))
    log = Axis.over([0.01, 1.0], "x", start=0, end=100, log=True, ticks=[0.01, 0.1, 1.0])
    assert log(0.1) == pytest.approx((log(0.01) + log(1.0)) / 2)
    assert log(0.1) == pytest.approx(100 * (math.log(0.1 / log.low)) / math.log(log.high / log.low))


def test_labels_of_ticks_differ():
    for low, high in ((0, 1), (0.811, 0.8125), (0, 3e6), (0.00001, 0.00002), (999, 1001)):
        labels = tick_labels(Axis.over([low, high], "x", start=0, end=1))
        assert len(set(labels)) == len(labels), labels


@pytest.mark.parametrize(("value", "shown"), [(0, "0"), (1234, "1,234"), (22_713_986, "22.7M"), (0.000125, "0.000125")])
def test_numbers(value, shown):
    assert number(value) == shown
