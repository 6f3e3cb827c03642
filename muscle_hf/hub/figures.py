"""The pictures of a card as SVG: those of the reports, standing alone; deterministic, a few kilobytes each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from muscle_hf.report import charts
from muscle_hf.report.charts import fit
from muscle_hf.report.markup import Markup


def quadrants_svg(panels: Sequence[tuple[str, Mapping[str, int]]]) -> str:
    """Where the items of a task ended up: the quadrants of each updated model, as in the reports.

    Args:
        panels: (title, counts of the four quadrants), from left to right.
    """
    return charts.standalone(
        "How answers change with the update",
        [(title, charts.quadrants("the old model", title, dict(counts))) for title, counts in panels],
    )


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
            panels.append((title, _curves(title, lines)))
    return charts.standalone("Training curves", panels) if panels else None


def _points(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    found = [(entry.get("step"), entry.get(key)) for entry in history]
    return [
        (x, y) for x, y in found if isinstance(x, (int, float)) and isinstance(y, (int, float)) and math.isfinite(y)
    ]


def _curves(title: str, lines: list[tuple[str, list[tuple[float, float]]]]) -> Markup:
    every = [point for _, points in lines for point in points]
    x_scale = fit((x for x, _ in every), 62, charts.WIDTH - 16, pad=0)
    y_scale = fit((y for _, y in every), 200, 10, zero=True)
    parts = charts.frame(x_scale, y_scale, lambda x: f"{x:g}", lambda y: f"{y:.3g}", ("step", ""))
    for index, (label, points) in enumerate(lines):
        css = ("path", "path other")[index]
        parts.append(charts.polyline([(x_scale(x), y_scale(y)) for x, y in points], css))
        parts.append(charts.polyline([(62 + 150 * index, 252), (82 + 150 * index, 252)], css))
        parts.append(charts.text(88 + 150 * index, 256, label))
    return charts.svg(266, title, *parts)
