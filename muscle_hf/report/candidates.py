"""Accuracy against negative flips of every candidate: the picture that says which one to ship."""

from __future__ import annotations

from muscle_hf.compare.document import Document, TaskResult
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup
from muscle_hf.report.parts import figure, task_checks
from muscle_hf.report.text import one_line


def trade_offs(document: Document) -> list[Markup]:
    """A picture for every total, then one for each task; words alone where there is one candidate."""
    return [_of_task(document, task) for task in (*document.totals, *document.tasks)]


def _of_task(document: Document, task: TaskResult) -> Markup:
    rated = [(update, rate) for update in task.updates if (rate := w.negative_rate(task, update)) is not None]
    fit = w.eligible(task)
    values = [(rate.value, update.accuracy.value) for update, rate in rated if update in fit]
    points = [
        charts.Point(
            update.label,
            rate,
            update.accuracy,
            update in fit and not _beaten((rate.value, update.accuracy.value), values),
        )
        for update, rate in rated
    ]
    limits = [check.limit for check in task_checks(document, task) if check.rule == "max_nfr"]
    picture = charts.trade_off(
        f"{w.quality(task)} against negative flips on {task.name}",
        points,
        (document.models[0].label, task.accuracy_old),
        ("got worse" if task.kind == "score" else "negative flips", w.quality(task)),
        (w.percent, w.show_quality(task)),
        min(limits, default=None),
    )
    return figure(one_line(task.name, 60), picture if len(points) > 1 else None, w.advice(document, task), level=3)


def _beaten(own: tuple[float, float], values: list[tuple[float, float]]) -> bool:
    """Has another candidate at most these flips and at least this accuracy, and one of them better?"""
    return any(other != own and other[0] <= own[0] and other[1] >= own[1] for other in values)
