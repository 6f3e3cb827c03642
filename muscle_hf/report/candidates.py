"""Accuracy against negative flips of every candidate: the picture that says which one to ship."""

from __future__ import annotations

from muscle_hf.compare.document import Document, TaskResult
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup


def trade_off(document: Document, task: TaskResult) -> tuple[Markup | None, list[tuple[str, str]]]:
    """Accuracy (mean score) against negative flips of all updated models on a task, or a total.

    Returns:
        The picture (None where there is but one candidate), and the letters of marks with what they stand for.
    """
    rated = [(update, rate) for update in task.updates if (rate := w.negative_rate(task, update)) is not None]
    if len(rated) < 2:
        return None, []
    fit = w.eligible(task)
    values = [(rate.value, update.accuracy.value) for update, rate in rated if update in fit]
    short = charts.key([update.label for update, _ in rated])
    points = [
        charts.Point(
            short[update.label],
            rate,
            update.accuracy,
            update in fit and not _beaten((rate.value, update.accuracy.value), values),
        )
        for update, rate in rated
    ]
    picture = charts.trade_off(
        f"{w.quality(task)} against negative flips on {task.name}",
        points,
        (document.models[0].label, task.accuracy_old),
        ("got worse" if task.kind == "score" else "negative flips", w.quality(task)),
        (w.percent, w.show_quality(task)),
        min(w.limits(document, task), default=None),
    )
    roles = {update.label: " (control)" if update.role == "control" else "" for update, _ in rated}
    return picture, [(letter, w.name(label) + roles[label]) for label, letter in short.items() if letter != label]


def _beaten(own: tuple[float, float], values: list[tuple[float, float]]) -> bool:
    """Has another candidate at most these flips and at least this accuracy, and one of them better?"""
    return any(other != own and other[0] <= own[0] and other[1] >= own[1] for other in values)
