from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import pytest

from services.ops.load.plot import Axis, Series, line_chart, number

NAMES = {"s": "http://www.w3.org/2000/svg"}
X, Y = Axis("offered load (× capacity)"), Axis("goodput (requests/s)")


def drawn(svg: str, **wanted: str) -> list[ET.Element]:
    """The elements of a class (`of`) or tag (`tag`)."""
    root = ET.fromstring(svg)  # noqa: S314 - our own text
    return [item for item in root.iter() if wanted.get("of") in {None, item.get("class")} and wanted.get("tag", "") in item.tag]


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The places of each line's points."""
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", item.get("d", ""))] for item in drawn(svg, tag="path")]


def test_points_are_where_they_belong() -> None:
    """On linear axes the middle value is in the middle, and more is higher up."""
    ((low, middle, high),) = points(line_chart("t", [Series("a", [(0, 0), (5, 50), (10, 100)])], X, Y))
    assert middle == pytest.approx(((low[0] + high[0]) / 2, (low[1] + high[1]) / 2), abs=0.1)
    assert high[1] < low[1]


def test_a_logarithmic_axis_has_equal_ratios_at_equal_distances() -> None:
    """1, 10, 100 are equally far apart."""
    ((one, ten, hundred),) = points(
        line_chart("t", [Series("a", [(1, 1), (10, 10), (100, 100)])], Axis("x", is_log=True), Axis("y", is_log=True))
    )
    assert ten == pytest.approx(((one[0] + hundred[0]) / 2, (one[1] + hundred[1]) / 2), abs=0.1)


def test_everything_needed_to_read_it_is_there() -> None:
    """Title, both labels with units, the series' names, marks; words with < and & are no markup."""
    svg = line_chart("Goodput <at> 2 & more", [Series("on", [(1, 2)]), Series("off & on", [(1, 3)])], X, Y, marks=[(1, "spike")])
    words = {item.text for item in drawn(svg, tag="text")}
    assert {"Goodput <at> 2 & more", X.label, Y.label, "on", "off & on", "spike"} <= words
    assert any(item.text == "on: 1, 2" for item in drawn(svg, tag="title"))


def test_points_lie_inside_the_frame() -> None:
    """Whatever the values are: also one point, equal points, tiny and huge ones."""
    for values in ([7.0], [0.0, 0.0], [1e-9, 3e-9], [5.0, 1.2e9], [-3.0, 4.0]):
        svg = line_chart("t", [Series("a", list(enumerate(values)))], X, Y, width=500, height=300)
        assert all(64 <= x <= 484 and 48 <= y <= 300 for x, y in points(svg)[0])


def test_a_missing_value_is_a_gap() -> None:
    """The line does not cross what is not known."""
    svg = line_chart("t", [Series("a", [(0, 1), (1, 1), (2, None), (3, 1), (4, 1)])], X, Y)
    path = drawn(svg, tag="path")[0].get("d", "")
    assert (path.count("M"), path.count("L")) == (2, 2)


def test_a_logarithmic_axis_has_figures_however_narrow_it_is() -> None:
    """Its ends are rounded, so that even close values can be read off."""
    for values in ([3.1, 3.2], [330.0, 330.0], [1.0, 1.0], [0.4, 7000.0]):
        svg = line_chart("t", [Series("a", list(enumerate(values)))], X, Axis("y", is_log=True))
        shown = [float((item.text or "").replace("k", "e3")) for item in drawn(svg, of="d") if item.get("text-anchor") == "end"]
        assert min(shown) <= min(values) <= max(values) <= max(shown)
        assert len(shown) >= 2


def test_given_ticks_and_bounds_are_kept() -> None:
    """Only the wanted ticks, in their places."""
    svg = line_chart(
        "t", [Series("a", [(1, 0.5)])], Axis("x", is_log=True, ticks=(1, 2, 5, 10)), Axis("y", lower=0, upper=1, ticks=(0, 0.5, 1))
    )
    assert [item.text for item in drawn(svg, of="d")] == ["0", "0.5", "1", "1", "2", "5", "10"]


def test_the_same_input_makes_the_same_bytes_without_anything_from_elsewhere() -> None:
    """A committed chart changes only with its figures, and needs no network."""
    asked = ("t", [Series("a", [(0, 0.1), (1, 0.3)], is_dashed=True)], X, Y)
    svg = line_chart(*asked)
    assert svg == line_chart(*asked)
    assert svg.count("http") == 1  # the name of the format
    assert "prefers-color-scheme:dark" in svg


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_what_cannot_be_shown_is_said(value: float) -> None:
    """Not left out in silence."""
    with pytest.raises(ValueError, match=r"y \(ms\)"):
        line_chart("t", [Series("a", [(1, value)])], X, Axis("ms", is_log=True))


def test_figures_are_short() -> None:
    """Three digits, no noise of floating point."""
    shown = {0.1 + 0.2: "0.3", 0: "0", 99.96: "100", 1234: "1234", 12_345: "12.3k", 2_500_000: "2.5M", 0.00123: "0.00123", -5: "-5"}
    assert {value: number(value) for value in shown} == shown
