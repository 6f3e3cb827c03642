"""Accuracy against negative flips of every candidate: the picture that says which one to ship."""

from __future__ import annotations

import math
from collections.abc import Callable

from muscle_hf.compare.document import Document, TaskResult
from muscle_hf.metrics import Estimate
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Child, Markup, join, tag
from muscle_hf.report.parts import figure, task_checks
from muscle_hf.report.text import one_line


def trade_offs(document: Document) -> list[Markup]:
    """One picture for all tasks together, where several are pooled, then one for each task."""
    pictures = [_of_task(document, task) for task in document.tasks]
    graded = [task for task in document.tasks if task.kind == "correct"]
    return [_of_all_tasks(document, graded), *pictures] if document.pooled and len(graded) > 1 else pictures


def _of_task(document: Document, task: TaskResult) -> Markup:
    rated = [(update, rate) for update in task.updates if (rate := w.negative_rate(task, update)) is not None]
    values = [(rate.value, update.accuracy.value) for update, rate in rated]
    points = [
        charts.Point(update.label, rate, update.accuracy, not _beaten(value, values))
        for (update, rate), value in zip(rated, values, strict=True)
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
    return figure(one_line(task.name, 60), picture, _leader_words(document, task), level=3)


def _of_all_tasks(document: Document, tasks: list[TaskResult]) -> Markup:
    """Means over the tasks whose answers are right or wrong, every task weighing the same."""

    def mean(accuracy: Callable[[TaskResult], float]) -> Estimate:
        return Estimate(sum(accuracy(task) for task in tasks) / len(tasks), math.nan, math.nan)

    def accuracy_of(label: str) -> Callable[[TaskResult], float]:
        return lambda task: next((u.accuracy.value for u in task.updates if u.label == label), math.nan)

    rated = [(pooled, mean(accuracy_of(pooled.label))) for pooled in document.pooled]
    values = [(pooled.nfr.value, accuracy.value) for pooled, accuracy in rated]
    points = [
        charts.Point(pooled.label, pooled.nfr, accuracy, not _beaten(value, values))
        for (pooled, accuracy), value in zip(rated, values, strict=True)
    ]
    picture = charts.trade_off(
        "Mean accuracy against negative flips over all tasks",
        points,
        (document.models[0].label, mean(lambda task: task.accuracy_old.value)),
        ("negative flips", "mean accuracy"),
        (w.percent, w.percent),
        None,
    )
    words = f"Means over {len(tasks)} tasks with right and wrong answers, every task weighing the same."
    return figure("All tasks together", picture, words, level=3)


def _beaten(own: tuple[float, float], values: list[tuple[float, float]]) -> bool:
    """Has another candidate at most these flips and at least this accuracy, and one of them better?"""
    return any(other != own and other[0] <= own[0] and other[1] >= own[1] for other in values)


def _leader_words(document: Document, task: TaskResult) -> Markup:
    safest, best = w.leaders(document, task)
    if safest is None or best is None:
        return join("There is no rate to compare.")
    rate = w.percent(w.negative_rate(task, safest).value)  # type: ignore[union-attr]
    quality = w.show_quality(task)(best.accuracy.value)
    flips = "negative flips" if task.kind == "correct" else "items that got worse"
    if len(task.updates) == 1:
        words: list[Child] = [tag("b", w.name(safest.label)), f": {rate} {flips}, {w.quality(task)} {quality}."]
    elif safest is best:
        words = [
            tag("b", w.name(safest.label)),
            f" leads on both: fewest {flips} ({rate}), highest {w.quality(task)} ({quality}).",
        ]
    else:
        words = [tag("b", w.name(safest.label)), f" has the fewest {flips} ({rate}), "]
        words += [tag("b", w.name(best.label)), f" the highest {w.quality(task)} ({quality})."]
    held = safest.against_new
    if held is None and len(task.updates) > 1:
        if all(u.against_new is None or u.against_new.verdict == "no difference shown" for u in task.updates):
            words.append(" No candidate is shown to break fewer or more than it, beyond chance.")
    elif held is not None:
        chance = "beyond chance" if held.verdict == "better" else "not shown to be more than chance"
        new = w.name(document.models[1].label)
        change = w.with_interval(held.delta_nfr, w.points)
        words.append(f" Flips of {w.name(safest.label)} less those of {new}: {change}, {chance}.")
    return join(words)
