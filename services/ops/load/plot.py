"""Line charts as SVG, for reports and docs: series in, text out. Pure, and the same bytes for the same input.

A chart brings its own style, so that it is readable in light and dark, alone in an `<img>` as well as inside a page.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 48, 46
_LEGEND_ROW, _CHARACTER = 18, 6.6
_STYLE = """\
.plot{font:12px system-ui,sans-serif}.plot text{fill:#1f2328}.plot .t{font-weight:600;font-size:14px}.plot .d{fill:#59636e}
.plot .g{stroke:#d1d9e0}.plot .a{stroke:#59636e}.plot .m{stroke:#59636e;stroke-dasharray:4 3}.plot path{fill:none;stroke-width:2}
.plot .c0{--c:#0969da}.plot .c1{--c:#bc4c00}.plot .c2{--c:#1a7f37}.plot .c3{--c:#8250df}.plot .c4{--c:#cf222e}.plot .c5{--c:#57606a}
.plot path,.plot .k{stroke:var(--c)}.plot .k{fill:var(--c)}
@media(prefers-color-scheme:dark){.plot text{fill:#e6edf3}.plot .d{fill:#9198a1}.plot .g{stroke:#3d444d}.plot .a,.plot .m{stroke:#9198a1}
.plot .c0{--c:#58a6ff}.plot .c1{--c:#f0883e}.plot .c2{--c:#3fb950}.plot .c3{--c:#bc8cff}.plot .c4{--c:#ff7b72}.plot .c5{--c:#b1bac4}}
"""
_COLOURS = 6


@dataclass(frozen=True)
class Series:
    """A line through points in their order; where y is None the line has a gap. The marker tells lines apart without colour."""

    name: str
    points: Sequence[tuple[float, float | None]]
    is_dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """What an axis shows, with its unit in the label. Bounds and ticks follow from the points where they are not given."""

    label: str
    is_log: bool = False
    lower: float | None = None
    upper: float | None = None
    ticks: Sequence[float] = ()


def line_chart(  # noqa: PLR0913 - what a chart is
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    *,
    marks: Sequence[tuple[float, str]] = (),
    width: int = 720,
    height: int = 340,
) -> str:
    """An SVG document. `marks` are upright lines at some x, each with a word: a stage's begin, a limit.

    Raises `ValueError` for a value that a logarithmic axis cannot show.
    """
    across = _Scale.of("x", x, [point[0] for one in series for point in one.points] + [at for at, _ in marks], (_LEFT, width - _RIGHT))
    legend, legend_height = _legend([one.name for one in series], width)
    base = height - _BOTTOM - legend_height
    up = _Scale.of("y", y, [point[1] for one in series for point in one.points if point[1] is not None], (base, _TOP))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" viewBox="0 0 {width} {height}" width="{width}">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style>",
        f'<text class="t" x="{_LEFT}" y="18">{escape(title)}</text>',
        *_grid(across, up, x, y),
        *(line for at, word in marks for line in _mark(across.place(at), base, word)),
        *(line for number, one in enumerate(series) for line in _line(number, one, across, up)),
        f'<g transform="translate({_LEFT} {height - legend_height + 4})">{legend}</g>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def number(value: float) -> str:
    """A figure as axes and tables show it: three digits at most, and k, M, G for the large ones."""
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class _Scale:
    """From values to places."""

    lower: float
    upper: float
    is_log: bool
    ticks: Sequence[float]
    places: tuple[float, float]

    @staticmethod
    def of(name: str, axis: Axis, values: Sequence[float], places: tuple[float, float]) -> _Scale:
        values = [*values, *axis.ticks, *(bound for bound in (axis.lower, axis.upper) if bound is not None)]
        bad = next((value for value in values if not math.isfinite(value) or (axis.is_log and value <= 0)), None)
        if bad is not None:
            raise ValueError(f"{name} ({axis.label}): {bad:g} cannot be shown{' on a logarithmic axis' if axis.is_log else ''}")
        least, greatest = (min(values), max(values)) if values else (1.0, 1.0)
        lower = axis.lower if axis.lower is not None else least if axis.is_log else min(0.0, least)
        upper = axis.upper if axis.upper is not None else greatest
        if axis.is_log and not axis.ticks:
            factors = (1, 10) if _is_wide(lower, upper) else (1, 2, 5, 10)
            lower, upper = axis.lower or _rounded(lower, factors, is_up=False), axis.upper or _rounded(upper, factors, is_up=True)
        if upper <= lower:
            upper = lower * 10 if axis.is_log else lower + 1
        ticks = axis.ticks or (_log_ticks(lower, upper) if axis.is_log else _ticks(lower, upper))
        if axis.upper is None and not axis.is_log and name == "y":
            upper = max(upper, _above(upper, ticks))
            ticks = axis.ticks or _ticks(lower, upper)
        return _Scale(lower, upper, axis.is_log, [tick for tick in ticks if lower <= tick <= upper], places)

    def place(self, value: float) -> float:
        if self.is_log:
            share = math.log(value / self.lower) / math.log(self.upper / self.lower)
        else:
            share = (value - self.lower) / (self.upper - self.lower)
        return self.places[0] + share * (self.places[1] - self.places[0])


def _ticks(lower: float, upper: float) -> list[float]:
    rough = (upper - lower) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    return [count * step for count in range(math.ceil(lower / step - 1e-9), math.floor(upper / step + 1e-9) + 1)]


def _log_ticks(lower: float, upper: float) -> list[float]:
    decades = range(math.floor(math.log10(lower)), math.ceil(math.log10(upper)) + 1)
    factors = (1,) if _is_wide(lower, upper) else (1, 2, 5)
    return [float(f"{factor}e{decade}") for decade in decades for factor in factors]


def _is_wide(lower: float, upper: float) -> bool:
    """Whether powers of ten are figures enough for a logarithmic axis."""
    return upper / lower > 1000


def _rounded(value: float, factors: Sequence[int], *, is_up: bool) -> float:
    """The nearest of some multiples of a power of ten in one direction, so that an axis has a figure at both ends."""
    power = math.floor(math.log10(value) + 1e-9)
    allowed = [float(f"{factor}e{power}") for factor in factors]
    if is_up:
        return next(one for one in allowed if one >= value * (1 - 1e-9))
    return next(one for one in reversed(allowed) if one <= value * (1 + 1e-9))


def _above(upper: float, ticks: Sequence[float]) -> float:
    """The first tick at or above the greatest value, so that the line ends below the frame."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else upper
    return math.ceil(upper / step - 1e-9) * step if step else upper


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> list[str]:
    (left, right), (base, top) = across.places, up.places
    lines = []
    for tick in up.ticks:
        place = up.place(tick)
        lines.append(f'<line class="g" x1="{left:.1f}" y1="{place:.1f}" x2="{right:.1f}" y2="{place:.1f}"/>')
        lines.append(f'<text class="d" x="{left - 6:.1f}" y="{place + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for tick in across.ticks:
        place = across.place(tick)
        lines.append(f'<line class="a" x1="{place:.1f}" y1="{base:.1f}" x2="{place:.1f}" y2="{base + 4:.1f}"/>')
        lines.append(f'<text class="d" x="{place:.1f}" y="{base + 17:.1f}" text-anchor="middle">{number(tick)}</text>')
    lines.append(f'<line class="a" x1="{left:.1f}" y1="{base:.1f}" x2="{right:.1f}" y2="{base:.1f}"/>')
    lines.append(f'<text x="{(left + right) / 2:.1f}" y="{base + 36:.1f}" text-anchor="middle">{escape(x.label)}</text>')
    middle = (base + top) / 2
    lines.append(f'<text x="14" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 14 {middle:.1f})">{escape(y.label)}</text>')
    return lines


def _mark(place: float, base: float, word: str) -> list[str]:
    return [
        f'<line class="m" x1="{place:.1f}" y1="{_TOP}" x2="{place:.1f}" y2="{base:.1f}"/>',
        f'<text class="d" x="{place + 4:.1f}" y="{_TOP - 3}">{escape(word)}</text>',
    ]


def _line(position: int, one: Series, across: _Scale, up: _Scale) -> list[str]:
    drawn, pen = [], "M"
    markers = []
    for at, value in one.points:
        if value is None:
            pen = "M"
            continue
        place_x, place_y = across.place(at), up.place(value)
        drawn.append(f"{pen}{place_x:.1f} {place_y:.1f}")
        pen = "L"
        told = escape(f"{one.name}: {number(at)}, {number(value)}")
        markers.append(f'<g transform="translate({place_x:.1f} {place_y:.1f})"><title>{told}</title>{_marker(position)}</g>')
    dash = ' stroke-dasharray="6 4"' if one.is_dashed else ""
    return [f'<g class="c{position % _COLOURS}"><path d="{"".join(drawn)}"{dash}/>', *markers, "</g>"]


def _marker(position: int) -> str:
    shapes = (
        '<circle class="k" r="3"/>',
        '<rect class="k" x="-3" y="-3" width="6" height="6"/>',
        '<polygon class="k" points="0,-4 4,3 -4,3"/>',
        '<polygon class="k" points="0,-4 4,0 0,4 -4,0"/>',
        '<polygon class="k" points="0,4 4,-3 -4,-3"/>',
    )
    return shapes[position % len(shapes)]


def _legend(names: Sequence[str], width: int) -> tuple[str, int]:
    """The legend, wrapped to the width, and its height."""
    parts, left, row = [], 0.0, 0
    for position, name in enumerate(names):
        needed = 34 + len(name) * _CHARACTER
        if left and left + needed > width - _LEFT - _RIGHT:
            left, row = 0.0, row + 1
        place = f"translate({left:.1f} {row * _LEGEND_ROW})"
        key = f'<g class="c{position % _COLOURS}" transform="translate(6 0)">{_marker(position)}</g>'
        parts.append(f'<g transform="{place}">{key}<text x="16" y="4">{escape(name)}</text></g>')
        left += needed
    return "".join(parts), (row + 1) * _LEGEND_ROW if names else 0
