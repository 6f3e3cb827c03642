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
from muscle_hf.report.markup import Markup, asset, macros
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
    """A scale from pixel ``start`` to ``end`` that holds all finite values, with a share ``pad`` of the range free on
    each side; with ``zero`` it includes zero, and a side on which all values have one sign begins there exactly."""
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


def standalone(label: str, panels: Sequence[tuple[str, Markup]]) -> str:
    """Pictures side by side, titles and SVG, each under its title, as a file: with its colours, on a ground of its
    own; ``label`` is for screen readers.

    The ink would vanish on a dark page, so the colours are those of light ones.
    """
    # The light colours come first in the style sheet, then those for dark pages, then the rules.
    light, _, rest = asset("charts.css").partition("@media")
    style = light.replace("color-scheme: light dark;", "") + rest.partition("\n}\n")[2]
    placed, x, height = [], 16.0, 0.0
    for title, picture in panels:
        width, tall = map(float, re.findall(r'viewBox="0 0 (\S+) (\S+)"', picture)[0])
        sized = f'<svg x="{x:g}" y="40" width="{width:g}" height="{tall:g}" '
        placed.append((x, one_line(title, 48, middle=True), Markup(str(picture).replace("<svg ", sized, 1))))
        x, height = x + width + 24, max(height, tall + 48)
    return f"{elements().standalone(label, Markup(style), placed, x, height)}"


def quadrants(old: str, new: str, counts: dict[str, int]) -> Markup:
    """The four quadrants of an update: each coloured square's area, against its quadrant's, is its share of items."""
    return elements().quadrants(old, new, counts)


def three_ways(new: str, counts: dict[str, int]) -> Markup:
    """What an update does to scores: a bar of the items that got worse, stayed and got better."""
    return elements().three_ways(new, counts)


@functools.cache
def elements() -> Any:
    """What pictures are made of, as functions: ``line``, ``text``, ``dot``, ``polyline``, ``frame``, ``svg``."""
    return macros("charts.html", {"w": w, "one_line": one_line, "ends": _ends, "finite": math.isfinite})


def whiskers(
    label: str,
    rows: Sequence[Row | tuple[str, Estimate, str]],
    show: w.Show,
    *,
    marks: Sequence[Mark | tuple[str, float, str]] = (),
    zero: bool = True,
) -> Markup:
    """Dots with their intervals on one scale; one-sided bounds end in an arrow at the edge."""
    rows, marks = [Row(*row) for row in rows], [Mark(*mark) for mark in marks]
    above = any(len(one_line(row.label)) > _BESIDE for row in rows)
    values = [v for row in rows for v in (row.estimate.value, row.estimate.low, row.estimate.high)]
    scale = fit([*values, *(mark.value for mark in marks)], 16 if above else 112, WIDTH - 70, zero=zero)
    return elements().whiskers(label, rows, show, marks, scale, above)


# A name, and its points from left to right.
Line: TypeAlias = tuple[str, Sequence[tuple[float, float]]]


def curves(label: str, lines: Sequence[Line]) -> Markup:
    """One or two lines over training steps, with their names below."""
    every = [point for _, points in lines for point in points]
    x_scale = fit((x for x, _ in every), 62, WIDTH - 16, pad=0)
    y_scale = fit((y for _, y in every), 200, 10, zero=True)
    placed = [(name, [(x_scale(x), y_scale(y)) for x, y in points]) for name, points in lines]
    return elements().curves(label, placed, x_scale, y_scale)


def small_whiskers(
    rows: Sequence[Row | tuple[str, Estimate, str]], scale: Scale, label: str, limit: float | None = None
) -> Markup:
    """A few dots with their intervals, one below the other, for a table's cell; with a line at zero and at a limit."""
    return elements().small_whiskers([Row(*row) for row in rows], scale, label, limit)


def trade_off(
    label: str,
    points: Sequence[Point],
    old: tuple[str, Estimate],
    names: tuple[str, str],
    show: tuple[w.Show, w.Show],
    limit: float | None = None,
) -> Markup:
    """Quality against negative flips of the candidates: up and to the left is better. ``label`` says to screen readers
    what the picture is; ``old``, label and quality of the model that they are held against, is drawn at all flips.
    ``names`` and ``show``, titles and formatters, are of the horizontal and the vertical axis; ``limit`` is the gate's
    on negative flips, if there is one."""
    flips = [limit or 0.0, *(v for p in points for v in (p.flips.value, p.flips.low, p.flips.high))]
    qualities = [v for p in points for v in (p.quality.value, p.quality.low, p.quality.high)]
    x_scale = fit(flips, 58, WIDTH - 14, zero=True)
    y_scale = fit([*qualities, old[1].value], 252, 26, pad=0.14)
    words = "; ".join(f"{p.label}: {show[0](p.flips.value)} flips, {show[1](p.quality.value)}" for p in points)
    placed = _placed(points, x_scale, y_scale)
    return elements().trade_off(f"{label}. {words}", placed, old, names, show, limit, x_scale, y_scale)


def _placed(points: Sequence[Point], x_scale: Scale, y_scale: Scale) -> list[dict[str, Any]]:
    """Where the candidates and their names stand."""
    points = [p for p in points if math.isfinite(p.flips.value) and math.isfinite(p.quality.value)]
    places = [(x_scale(p.flips.value), y_scale(p.quality.value)) for p in points]
    taken = [(x - 8, y - 8, x + 8, y + 8) for x, y in places]
    frame = (x_scale.start, y_scale.end, x_scale.end, y_scale.start)
    found = []
    for index, (point, (x, y)) in enumerate(zip(points, places, strict=True)):
        name = one_line(point.label, 16, middle=True)
        at, anchor, plain = _free_place(index, places, 7.5 * len(name), taken, frame)
        css = "leads" if point.leads else "trails"
        found.append(
            {"point": point, "x": x, "y": y, "css": css, "name": name, "at": at, "anchor": anchor, "plain": plain}
        )
    return found


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


def _ends(estimate: Estimate, scale: Scale) -> tuple[float, float]:
    """Pixels of the interval's ends; the open end of a one-sided bound stops at the point."""
    low = estimate.low if math.isfinite(estimate.low) else estimate.value
    high = estimate.high if math.isfinite(estimate.high) else estimate.value
    return scale(low), scale(high)
