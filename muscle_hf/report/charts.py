"""Pictures of rates, as SVG whose colours come from the page's style sheet.

All are drawn for a width of about 380 pixels, so that their text keeps its size on a phone. One colour, one meaning,
everywhere: vermilion for what got worse, blue for what got better, greys for what stayed.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Child, Markup, asset, macros, tag
from muscle_hf.report.text import one_line

WIDTH = 380
# Characters of a name that fit before a row.
_BESIDE = 15


@dataclass(frozen=True)
class Scale:
    """Maps ``[low, high]`` to pixels ``[start, end]``, clamped at both ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values within the scale, about ``count`` of them."""
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def fit(values: Iterable[float], start: float, end: float, *, zero: bool = False, pad: float = 0.06) -> Scale:
    """A scale that holds all finite ``values``.

    Args:
        values: Data; nan and infinities are left out.
        start: Pixel of the lower end.
        end: Pixel of the upper end.
        zero: Include zero. A side on which all values have one sign then begins at zero exactly.
        pad: Share of the range to leave free on each side.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9:
        low, high = (0.0, 0.01) if zero and abs(low) < 1e-9 else (low - 0.01, high + 0.01)
    margin = pad * (high - low)
    return Scale(low if zero and low == 0 else low - margin, high if zero and high == 0 else high + margin, start, end)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return power * min((1, 2, 5, 10), key=lambda step: abs(math.log(step * power / raw)))


class Row(NamedTuple):
    """A labelled estimate of a dot-and-whisker chart; ``css`` is ``worse``, ``better`` or ``plain``."""

    label: str
    estimate: Estimate
    css: str = "plain"


class Mark(NamedTuple):
    """A vertical line through a dot-and-whisker chart: a limit, a noise floor, zero."""

    label: str
    value: float
    css: str


@dataclass(frozen=True)
class Point:
    """A candidate of the accuracy-against-flips chart."""

    label: str
    flips: Estimate
    quality: Estimate
    leads: bool


def key(labels: Sequence[str]) -> dict[str, str]:
    """What marks are named by in a picture: their labels, or letters where a label would not fit."""
    if all(len(one_line(label)) <= 16 for label in labels):
        return {label: label for label in labels}
    return {label: chr(ord("A") + place % 26) * (1 + place // 26) for place, label in enumerate(labels)}


def svg(height: float, label: str, *children: Child, width: float = WIDTH) -> Markup:
    """An SVG element that screen readers announce as one picture named ``label``."""
    return tag(
        "svg",
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=label,
        preserveAspectRatio="xMidYMid",
    )


def standalone(label: str, panels: Sequence[tuple[str, Markup]]) -> str:
    """Pictures side by side, each under its title, as a file: with its colours, on a ground of its own.

    The ink would vanish on a dark page, so the colours are those of light ones.

    Args:
        label: What they are, for screen readers.
        panels: Titles and what :func:`svg` made.
    """
    # The light colours come first in the style sheet, then those for dark pages, then the rules.
    light, _, rest = asset("charts.css").partition("@media")
    style = light.replace("color-scheme: light dark;", "") + rest.partition("\n}\n")[2]
    placed, x, height = [], 16.0, 0.0
    for title, drawn in panels:
        width, tall = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', drawn)[0])
        sized = f'<svg x="{x:g}" y="40" width="{width:g}" height="{tall:g}" '
        placed.append((x, one_line(title, 48, middle=True), Markup(str(drawn).replace("<svg ", sized, 1))))
        x, height = x + width + 24, max(height, tall + 48)
    return f"{_drawn().standalone(label, Markup(style), placed, x, height)}"


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> Markup:
    """A line of text whose baseline starts, is centred or ends at (x, y)."""
    return tag("text", content, x=x, y=y, class_=css or None, text_anchor=None if anchor == "start" else anchor)


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=css)


def quadrants(old: str, new: str, counts: dict[str, int]) -> Markup:
    """The four quadrants of an update: each coloured square's area, against its quadrant's, is its share of items."""
    return _drawn().quadrants(old, new, counts)


def three_ways(new: str, counts: dict[str, int]) -> Markup:
    """What an update does to scores: a bar of the items that got worse, stayed and got better."""
    return _drawn().three_ways(new, counts)


@functools.cache
def _drawn() -> Any:
    return macros("charts.html", {"w": w})


def whiskers(
    label: str,
    rows: Sequence[Row | tuple[str, Estimate, str]],
    show: w.Show,
    *,
    marks: Sequence[Mark | tuple[str, float, str]] = (),
    zero: bool = True,
) -> Markup:
    """Dots with their intervals on one scale; one-sided bounds end in an arrow at the edge.

    Names stand before their rows or, where one is too long for that, above them.
    """
    rows, marks = [Row(*row) for row in rows], [Mark(*mark) for mark in marks]
    above = any(len(one_line(row.label)) > _BESIDE for row in rows)
    left, right, step, top = 16 if above else 112, WIDTH - 70, 44 if above else 28, 22 if marks else 8
    values = [v for row in rows for v in (row.estimate.value, row.estimate.low, row.estimate.high)]
    scale = fit([*values, *(mark.value for mark in marks)], left, right, zero=zero)
    bottom = top + step * len(rows)
    parts = _axis(scale, top, bottom, show)
    for mark in marks:
        if math.isfinite(mark.value):
            x = scale(mark.value)
            parts.append(line(x, top - 4, x, bottom, f"mark {mark.css}"))
            if mark.label:
                parts.append(text(x, top - 8, mark.label, "tiny halo", _anchor(x, left, right)))
    for index, row in enumerate(rows):
        y = top + step * (index + 0.5) + (8 if above else 0)
        at, anchor = ((left, y - 14), "start") if above else ((left - 10, y + 4), "end")
        name = one_line(row.label, 52 if above else _BESIDE, middle=True)
        parts += [text(*at, name, "halo", anchor), *_interval(row, scale, y)]
        parts.append(text(WIDTH - 4, y + 4, show(row.estimate.value), "value", "end"))
    words = "; ".join(f"{row.label}: {w.with_interval(row.estimate, show)}" for row in rows)
    return svg(bottom + 22, f"{label}. {words}", *parts)


# A name, and its points from left to right.
Line: TypeAlias = tuple[str, Sequence[tuple[float, float]]]


def curves(label: str, lines: Sequence[Line]) -> Markup:
    """One or two lines over training steps, with their names below."""
    every = [point for _, points in lines for point in points]
    x_scale = fit((x for x, _ in every), 62, WIDTH - 16, pad=0)
    y_scale = fit((y for _, y in every), 200, 10, zero=True)
    parts = frame(x_scale, y_scale, lambda x: f"{x:g}", lambda y: f"{y:.3g}", ("step", ""))
    for index, (name, points) in enumerate(lines):
        css = ("path", "path other")[index]
        parts.append(polyline([(x_scale(x), y_scale(y)) for x, y in points], css))
        parts.append(polyline([(62 + 150 * index, 252), (82 + 150 * index, 252)], css))
        parts.append(text(88 + 150 * index, 256, name))
    return svg(266, label, *parts)


def small_whiskers(
    rows: Sequence[Row | tuple[str, Estimate, str]], scale: Scale, label: str, limit: float | None = None
) -> Markup:
    """A few dots with their intervals, one below the other, for a table's cell; with a line at zero and at a limit."""
    height = 8 + 16 * len(rows)
    parts = [line(scale(0.0), 0, scale(0.0), height, "mark zero")]
    if limit is not None:
        parts.append(line(scale(limit), 0, scale(limit), height, "mark limit"))
    parts += [mark for place, row in enumerate(rows) for mark in _interval(Row(*row), scale, 12 + 16 * place)]
    return svg(height, label, *parts, width=scale.end + 8)


def trade_off(
    label: str,
    points: Sequence[Point],
    old: tuple[str, Estimate],
    names: tuple[str, str],
    show: tuple[w.Show, w.Show],
    limit: float | None = None,
) -> Markup:
    """Quality against negative flips: up and to the left is better.

    Args:
        label: What the picture is, for screen readers.
        points: The candidates.
        old: Label and quality of the model that they are held against, drawn at all flips.
        names: Titles of the horizontal and the vertical axis.
        show: Formatters of the horizontal and the vertical axis.
        limit: The gate's limit on negative flips, if there is one.
    """
    left, right, top, bottom = 58, WIDTH - 14, 26, 252
    flips = [limit or 0.0, *(v for p in points for v in (p.flips.value, p.flips.low, p.flips.high))]
    qualities = [v for p in points for v in (p.quality.value, p.quality.low, p.quality.high)]
    x_scale = fit(flips, left, right, zero=True)
    y_scale = fit([*qualities, old[1].value], bottom, top, pad=0.14)
    parts = frame(x_scale, y_scale, *show, names)
    parts.append(text(left + 2, bottom + 34, "↖ better", "head accent"))
    if limit is not None:
        x = x_scale(limit)
        parts += [
            tag("rect", x=x, y=top, width=right - x, height=bottom - top, class_="over"),
            line(x, top, x, bottom, "mark limit"),
            text(x - 4, top + 13, "limit", "tiny halo", "end"),
        ]
    if math.isfinite(old[1].value):
        y_old = y_scale(old[1].value)
        # Above the picture: on the line, marks and their letters would lie over the name.
        name = text(right, 16, f"╌╌ {one_line(old[0], 26, middle=True)}", "tiny", "end")
        parts += [line(left, y_old, right, y_old, "mark old"), name]
    parts += _candidates(points, x_scale, y_scale)
    words = "; ".join(f"{p.label}: {show[0](p.flips.value)} flips, {show[1](p.quality.value)}" for p in points)
    return svg(bottom + 44, f"{label}. {words}", *parts)


def frame(
    x_scale: Scale,
    y_scale: Scale,
    show_x: w.Show,
    show_y: w.Show,
    names: tuple[str, str] = ("", ""),
    x_ticks: Sequence[float] | None = None,
) -> list[Markup]:
    """Ground, ticks and the titles of both axes of a picture with two scales."""
    (left, right), (bottom, top) = (x_scale.start, x_scale.end), (y_scale.start, y_scale.end)
    parts = [tag("rect", x=left, y=top, width=right - left, height=bottom - top, class_="field")]
    for tick in x_scale.ticks() if x_ticks is None else x_ticks:
        x, label = x_scale(tick), show_x(tick)
        parts.append(line(x, top, x, bottom, "rule"))
        parts.append(text(x, bottom + 16, w.tick(label) if x_ticks is None else label, "tiny", "middle"))
    for tick in y_scale.ticks():
        y = y_scale(tick)
        parts += [line(left, y, right, y, "rule"), text(left - 6, y + 4, w.tick(show_y(tick)), "tiny", "end")]
    if names[0]:
        parts.append(text(right, bottom + 34, f"{names[0]} →", "head", "end"))
    if names[1]:
        parts.append(text(left, 16, f"↑ {one_line(names[1], 40)}", "head"))
    return parts


def polyline(places: Sequence[tuple[float, float]], css: str = "path") -> Markup:
    """Points joined by lines."""
    return tag("polyline", points=coordinates(places), class_=css)


def coordinates(places: Sequence[tuple[float, float]]) -> str:
    """Points as SVG has them."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


def _candidates(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> list[Markup]:
    whiskers: list[Markup] = []
    leaders: list[Markup] = []
    dots: list[Markup] = []
    points = [p for p in points if math.isfinite(p.flips.value) and math.isfinite(p.quality.value)]
    places = [(x_scale(p.flips.value), y_scale(p.quality.value)) for p in points]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    frame = (x_scale.start, y_scale.end, x_scale.end, y_scale.start)
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        x_low, x_high = _ends(point.flips, x_scale)
        y_low, y_high = _ends(point.quality, y_scale)
        css = "leads" if point.leads else "trails"
        whiskers += [line(x_low, y, x_high, y, f"whisker {css}"), line(x, y_low, x, y_high, f"whisker {css}")]
        dots.append(_shape(index, x, y, css))
        name = one_line(point.label, 16, middle=True)
        at, anchor, plain = _free_place(index, places, 7.5 * len(name), taken, frame)
        if not plain:
            leaders.append(line(x, y, at[0], at[1] - 4, "leader"))
        dots.append(text(*at, name, f"name halo {css}", anchor))
    return whiskers + leaders + dots


_Box = tuple[float, float, float, float]


def _free_place(
    index: int, points: Sequence[tuple[float, float]], width: float, taken: list[_Box], frame: _Box
) -> tuple[tuple[float, float], str, bool]:
    """Where a point's label hides neither another label nor another point, nearest to its own point if there is such
    a place; and whether one sees without a line which point it names."""
    x, y = points[index]
    first = 1 if x < frame[0] + 0.62 * (frame[2] - frame[0]) else -1
    beside = [(side * 9, offset) for offset in (-8, 18) for side in (first, -first)]
    away = itertools.product(
        (first * 9, -first * 9, first * 36, -first * 36), (*range(-120, -8, 16), *range(34, 140, 16))
    )
    places = [*beside, *sorted(away, key=lambda place: math.hypot(*place))]
    boxes = []
    for reach, offset in places:
        start = x + reach if reach > 0 else x + reach - width
        boxes.append((start, y + offset - 11, start + width, y + offset + 3))

    def plain(at: int) -> bool:
        return min(range(len(points)), key=lambda other: _distance(boxes[at], points[other])) == index

    def free(at: int) -> bool:
        left, top, right, bottom = boxes[at]
        inside = left > frame[0] - 50 and right < frame[2] + 12 and top > frame[1] and bottom < frame[3]
        return inside and not any(_meet(boxes[at], box) for box in taken)

    order = [at for at in range(len(places)) if free(at)] or [0]
    chosen = next(filter(plain, order), order[0])
    taken.append(boxes[chosen])
    reach, offset = places[chosen]
    return (x + reach, y + offset), "start" if reach > 0 else "end", plain(chosen) and chosen < len(beside)


def _distance(box: _Box, point: tuple[float, float]) -> float:
    x, y = point
    return math.hypot(max(box[0] - x, x - box[2], 0.0), max(box[1] - y, y - box[3], 0.0))


def _meet(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shape(index: int, x: float, y: float, css: str) -> Markup:
    """Candidates differ by shape, so that colour is not needed to tell them apart."""
    r = 6.0
    corners = [
        None,
        [(0, -r - 1), (r + 1, 0), (0, r + 1), (-r - 1, 0)],
        [(-r, -r), (r, -r), (r, r), (-r, r)],
        [(0, -r - 1), (r + 1, r), (-r - 1, r)],
        [(0, r + 1), (r + 1, -r), (-r - 1, -r)],
    ][index % 5]
    if corners is None:
        return tag("circle", cx=x, cy=y, r=r, class_=f"dot {css}")
    return tag("polygon", points=coordinates([(x + dx, y + dy) for dx, dy in corners]), class_=f"dot {css}")


def _axis(scale: Scale, top: float, bottom: float, show: w.Show) -> list[Markup]:
    parts = [line(scale.start, bottom, scale.end, bottom, "axis")]
    for tick in scale.ticks(3):
        x = scale(tick)
        parts += [line(x, top, x, bottom, "rule"), text(x, bottom + 15, w.tick(show(tick)), "tiny", "middle")]
    return parts


def _interval(row: Row, scale: Scale, y: float) -> list[Markup]:
    if not math.isfinite(row.estimate.value):
        return []
    low, high = _ends(row.estimate, scale)
    parts = [line(low, y, high, y, f"whisker {row.css}")]
    for end, bound in ((low, row.estimate.low), (high, row.estimate.high)):
        if math.isfinite(bound):
            parts.append(line(end, y - 4, end, y + 4, f"whisker {row.css}"))
    return [*parts, tag("circle", cx=scale(row.estimate.value), cy=y, r=5, class_=f"dot {row.css}")]


def _ends(estimate: Estimate, scale: Scale) -> tuple[float, float]:
    """Pixels of the interval's ends; the open end of a one-sided bound stops at the point."""
    low = estimate.low if math.isfinite(estimate.low) else estimate.value
    high = estimate.high if math.isfinite(estimate.high) else estimate.value
    return scale(low), scale(high)


def _anchor(x: float, left: float, right: float) -> str:
    return "start" if x < left + 30 else "end" if x > right - 30 else "middle"
