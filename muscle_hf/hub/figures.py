"""The pictures of a card as SVG: deterministic, a few kilobytes each, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muscle_hf.report.markup import Markup, join, tag

_INK, _FAINT = "#1f2933", "#cbd2d9"
# Quadrants: name in the counts, label, fill, colour of the text on it.
_QUADRANTS = {
    "both_right": ("both right", "#b8d4e3", _INK),
    "negative_flips": ("negative flips", "#c0392b", "#ffffff"),
    "positive_flips": ("positive flips", "#2e8b57", "#ffffff"),
    "both_wrong": ("both wrong", "#d5d8dc", _INK),
}
_SERIES_COLOURS = ("#2b6cb0", "#c05621")
_SIDE, _GAP, _TOP, _LEFT = 220, 60, 54, 16


def quadrants_svg(panels: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Where the items of a task ended up: one square per updated model, areas in proportion to the items.

    The left column holds what the old model had right, the right column what it had wrong; in each, what the updated
    model has right lies below what it has wrong.

    Args:
        panels: (title, counts of the four quadrants), from left to right.
    """
    width = 2 * _LEFT + len(panels) * (_SIDE + _GAP) - _GAP
    height = _TOP + _SIDE + 64
    drawn = [
        _mosaic(title, counts, _LEFT + index * (_SIDE + _GAP), _TOP) for index, (title, counts) in enumerate(panels)
    ]
    return _svg(width, height, "How answers change with the update", *drawn)


def _mosaic(title: str, counts: Mapping[str, int], left: float, top: float) -> Markup:
    total = sum(counts.values()) or 1
    columns = (("both_right", "negative_flips", "old right"), ("positive_flips", "both_wrong", "old wrong"))
    parts, x = [_text(left, top - 30, title, weight="bold")], left
    for below, above, heading in columns:
        held = counts[below] + counts[above]
        width = _SIDE * held / total
        if held:
            tall = _SIDE * counts[above] / held
            parts += _tile(x, top, width, tall, above, counts[above])
            parts += _tile(x, top + tall, width, _SIDE - tall, below, counts[below])
            if width > 56:
                parts.append(_text(x + 2, top - 8, f"{heading} ({held})", size=11))
        x += width
    for index, (name, (label, fill, _)) in enumerate(_QUADRANTS.items()):
        column, row = index % 2, index // 2
        dx, dy = left + column * 116, top + _SIDE + 14 + row * 20
        parts += [tag("rect", x=dx, y=dy, width=10, height=10, fill=fill)]
        parts += [_text(dx + 15, dy + 9, f"{label} {counts[name]}", size=11)]
    return join(parts)


def _tile(x: float, y: float, width: float, height: float, name: str, count: int) -> list[Markup]:
    if not count:
        return []
    _, fill, ink = _QUADRANTS[name]
    parts = [tag("rect", x=x, y=y, width=width, height=height, fill=fill, stroke="#ffffff", stroke_width=1)]
    if width > 34 and height > 18:
        parts.append(_text(x + width / 2, y + height / 2 + 4, str(count), fill=ink, anchor="middle"))
    return parts


def curves_svg(history: Sequence[Mapping[str, float]]) -> str | None:
    """Training curves: loss, and KL to the old and the new model; None if too little was logged.

    Args:
        history: Logged figures with ``step``; training and ``eval_`` figures mixed.
    """
    panels = []
    for title, series in (
        ("loss", (("loss", "training"), ("eval_loss", "evaluation"))),
        ("KL on the evaluation set", (("eval_kl_old", "to the old model"), ("eval_kl_new", "to the new model"))),
    ):
        lines = [(label, _points(history, key)) for key, label in series]
        lines = [(label, points) for label, points in lines if len(points) > 1]
        if lines:
            panels.append((title, lines))
    if not panels:
        return None
    width = 2 * _LEFT + len(panels) * (300 + _GAP)
    drawn = [
        _chart(title, lines, _LEFT + 44 + index * (300 + _GAP), _TOP) for index, (title, lines) in enumerate(panels)
    ]
    return _svg(width, _TOP + 160 + 56, "Training curves", *drawn)


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    found = [(entry.get("step"), entry.get(key)) for entry in history]
    return [
        (x, y) for x, y in found if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y)
    ]


def _chart(title: str, lines: list[tuple[str, list[tuple[float, float]]]], left: float, top: float) -> Markup:
    width, height = 256.0, 160.0
    every = [point for _, points in lines for point in points]
    x_low, x_high = min(x for x, _ in every), max(x for x, _ in every)
    y_low, y_high = min(0.0, min(y for _, y in every)), max(y for _, y in every)
    y_high = y_high if y_high > y_low else y_low + 1
    x_high = x_high if x_high > x_low else x_low + 1

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - x_low) / (x_high - x_low), top + height * (1 - (y - y_low) / (y_high - y_low))

    parts = [_text(left, top - 30, title, weight="bold")]
    for share in (0.0, 0.5, 1.0):
        y = y_low + share * (y_high - y_low)
        _, dy = place(x_low, y)
        parts.append(tag("line", x1=left, y1=dy, x2=left + width, y2=dy, stroke=_FAINT))
        parts.append(_text(left - 6, dy + 4, f"{y:.3g}", size=10, anchor="end"))
    for x in (x_low, x_high):
        dx, _ = place(x, y_low)
        parts.append(_text(dx, top + height + 16, f"{x:g}", size=10, anchor="middle"))
    parts.append(_text(left + width / 2, top + height + 16, "step", size=10, anchor="middle"))
    for index, (label, points) in enumerate(lines):
        path = " ".join(f"{dx:.1f},{dy:.1f}" for dx, dy in (place(x, y) for x, y in points))
        colour = _SERIES_COLOURS[index]
        parts.append(tag("polyline", points=path, fill="none", stroke=colour, stroke_width=2))
        dx = left + index * 120
        parts.append(tag("rect", x=dx, y=top + height + 30, width=12, height=3, fill=colour))
        parts.append(_text(dx + 17, top + height + 35, label, size=11))
    return join(parts)


def _text(
    x: float, y: float, text: str, *, size: int = 13, fill: str = _INK, anchor: str = "start", weight: str = "normal"
) -> Markup:
    return tag("text", text, x=x, y=y, font_size=size, fill=fill, text_anchor=anchor, font_weight=weight)


def _svg(width: float, height: float, title: str, *children: Any) -> str:
    # A ground of its own: the ink would vanish on a dark page.
    ground = tag("rect", width=width, height=height, rx=8, fill="#ffffff")
    picture = tag(
        "svg",
        tag("title", title),
        ground,
        children,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        font_family="system-ui, sans-serif",
        role="img",
    )
    return f"{picture}\n"
