"""Charts: where a value stands, which ticks there are, and that no word can break out of the SVG."""

import math
import re
from xml.etree import ElementTree

import pytest

from fracray.reporting.charts import WIDTH, Axis, Plot, number


def words(svg):
    return [node.text for node in ElementTree.fromstring(svg).iter("text")]


def paths(svg, kind):
    return [node.get("d") for node in ElementTree.fromstring(svg).iter("path") if kind in node.get("class").split()]


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis("x", 0.0, 1.0), ["0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (Axis("x", -0.02, 1.02), ["0", "0.25", "0.50", "0.75", "1.00"]),
        (Axis("x", 0.5, 9.5, whole=True), ["2", "4", "6", "8"]),
        (Axis("x", 0.5, 2.5, whole=True), ["1", "2"]),
        (Axis("x", 0.817, 0.842), ["0.820", "0.825", "0.830", "0.835", "0.840"]),
        (Axis("x", -1500.0, 30500.0), ["0", "10,000", "20,000", "30,000"]),
        (Axis("x", 1e-4, 1e-1, log=True), ["1e-4", "0.001", "0.01", "0.1"]),
        (Axis("x", 2e-3, 6e-3, log=True), ["0.002", "0.003", "0.004", "0.005", "0.006"]),
        (Axis.of_names("x", ["a", "b"]), ["a", "b"]),
    ],
)
def test_ticks_are_round_and_told_apart(axis, ticks):
    assert [words for _, words in axis.ticks()] == ticks


def test_ticks_stand_where_their_words_say():
    for value, told in (*Axis("x", 0.817, 0.842).ticks(), *Axis("x", 2e-3, 6e-3, log=True).ticks()):
        assert float(told) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("value", "told"),
    [(0.0, "0"), (1e-4, "1e-4"), (2.5e-7, "2.5e-7"), (10_000.0, "10,000"), (1e9, "1e9"), (0.5, "0.5")],
)
def test_numbers_are_short(value, told):
    assert number(value) == told


def test_an_axis_over_equal_values_and_over_none_has_room():
    for values in ([0.5, 0.5], [math.nan], [0.0], []):
        axis = Axis.over("x", values)
        assert axis.low < axis.high
        assert axis.ticks()
    assert Axis.over("x", [1e-3, 1e-3, 0.0, -1.0], log=True).low > 0


def test_a_few_values_far_away_do_not_stretch_an_axis():
    near = [0.7 + at / 100 for at in range(10)]
    assert Axis.without_outliers("x", [*near, 1e6]).high < 1
    assert Axis.without_outliers("x", [*near, 0.95]).high > 0.95
    assert Axis.without_outliers("x", [*near, 5.0], [5.0]).high > 5
    assert Axis.without_outliers("x", [0.1] * 9 + [5.0]).high > 5  # no spread: nothing is called far


def test_points_and_lines_leave_out_what_is_missing():
    plot = Plot(Axis("x", 0, 4), Axis("y", 0, 1))
    plot.dots([1, 2, 3], [0.5, math.nan, 0.7], "first")
    plot.line([0, 1, 2, 3, 4], [0.1, 0.2, math.nan, 0.4, 0.5], "second")
    svg = plot.svg("label")
    assert paths(svg, "dots")[0].count("M") == 2
    assert re.sub(r"[\d. ]", "", paths(svg, "second")[0]) == "MLML"


def test_the_ends_of_the_axes_are_the_ends_of_the_frame():
    plot = Plot(Axis("x", 0, 1), Axis("y", 0, 1))
    plot.line([0, 1], [0, 1], "first")
    plot.dots([5.0], [9.0], "second")  # beyond: at the edge
    svg = plot.svg("label")
    frame, line, dot = (paths(svg, kind)[0] for kind in ("frame", "first", "dots"))
    left, top, base, right = map(float, re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)H([\d.]+)", frame).groups())
    assert line == f"M{left:.1f} {base:.1f}L{right:.1f} {top:.1f}"
    assert dot == f"M{right:.1f} {top:.1f}h0"
    assert right < WIDTH


def test_steps_keep_their_height_until_the_next_point():
    plot = Plot(Axis("x", 0, 2), Axis("y", 0, 1))
    plot.steps([0, 1, 2], [0.0, 0.5, 1.0], "first")
    heights = [float(point.split()[1]) for point in re.split("[ML]", paths(plot.svg("x"), "first")[0])[1:]]
    assert heights[0] == heights[1] > heights[2] == heights[3] > heights[4]


def test_words_are_escaped():
    evil = '</text><script>alert(1)</script>&"'
    svg = Plot(Axis.of_names(evil, [evil[:20]]), Axis(evil)).svg(evil)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == evil
    assert evil in words(svg)
    assert "<script" not in svg


def test_long_names_are_cut_in_the_middle():
    ((_, told),) = Axis.of_names("x", ["convnext_tiny.in12k_ft_in1k_384"]).ticks()
    assert len(told) == 22
    assert told.startswith("convnext_t")
    assert told.endswith("in1k_384")
