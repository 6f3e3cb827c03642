"""Rows of the tables that several reports have, as text, and pictures; names, tasks and columns are from data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from muscle_hf.compare.document import AgainstNew, Document, GateCheck, NoiseFloor, Slice, TaskResult, Update
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.charts import Scale, fit, whiskers
from muscle_hf.report.markup import Markup
from muscle_hf.report.text import one_line

OVERVIEW_HEADER = ("Task", "Model", "Old", "New", "Change", "Breaks", "Repairs", "NFR", "Verdict")
GATE_HEADER = ("Task", "Model", "Limit", "Measured, bound", "Noise floor", "Verdict")
NOISE_HEADER = ("Task", "Runs", "Items", "NFR", "Largest", "Answers changed")
SLICE_HEADER = ("Slice", "Model", "Items", "NFR", "Change", "p", "Verdict")
MEASURE_HEADER = ("Beside the answers", "Model", "Old", "New", "Change")


def overview(tasks: Iterable[TaskResult], *, intervals: bool = True) -> list[tuple[str, ...]]:
    """A row for each task and updated model under :data:`OVERVIEW_HEADER`; ``intervals`` of all but the old model."""
    rows = []
    for task in tasks:
        level, change = w.show_quality(task), w.show_change(task)
        for update in task.updates:
            rate = w.negative_rate(task, update)
            told = w.with_interval if intervals else lambda estimate, show=w.percent: show(estimate.value)
            rows.append(
                (
                    w.name(task.name),
                    w.name(update.label) + (" (control)" if update.role == "control" else ""),
                    level(task.accuracy_old.value),
                    told(update.accuracy, level),
                    told(update.change, change),
                    w.count(w.negatives(task, update)),
                    w.count(w.positives(task, update)),
                    w.ABSENT if rate is None else told(rate),
                    update.verdict,
                )
            )
    return rows


def all_rates(task: TaskResult) -> list[tuple[str, ...]]:
    """A row for each number, a column for the old and each updated model."""

    def row(title: str, cell: Callable[[Update], str], old: str = "") -> tuple[str, ...]:
        return (title, old, *(cell(update) for update in task.updates))

    def rate(key: str) -> Callable[[Update], str]:
        return lambda u: w.with_interval(u.rates[key], w.show_rate(key)) if key in u.rates else w.ABSENT

    def held(cell: Callable[[AgainstNew], str]) -> Callable[[Update], str]:
        return lambda u: "" if u.against_new is None else cell(u.against_new)

    show, change = w.show_quality(task), w.show_change(task)
    counts = dict.fromkeys(key for update in task.updates for key in update.counts)
    rates = dict.fromkeys(key for update in task.updates for key in update.rates)
    rows = [
        row(w.quality(task), lambda u: w.with_interval(u.accuracy, show), w.with_interval(task.accuracy_old, show)),
        row("change", lambda u: w.with_interval(u.change, change)),
        *(row(w.COUNTS.get(key, key), lambda u, key=key: w.count(u.counts.get(key, 0))) for key in counts),
        *(row(w.measure(key).symbol, rate(key)) for key in rates),
        row("p", lambda u: w.p_value(u.p_adjusted)),
        row("verdict", lambda u: u.verdict),
    ]
    if any(update.against_new for update in task.updates):
        symbol = w.measure(w.negative_key(task)).symbol
        rows += [
            row(f"Δ{symbol} against new", held(lambda h: w.with_interval(h.delta_nfr, w.points))),
            row("in percent", held(lambda h: _relative(h.delta_nfr_percent))),
            row("p against new", held(lambda h: w.p_value(h.p_adjusted))),
            row("verdict against new", held(lambda h: h.verdict)),
        ]
    return rows


def _relative(value: float) -> str:
    return f"{value:+.1f}%".replace("-", w.MINUS) if math.isfinite(value) else w.ABSENT


def gate(checks: Iterable[GateCheck]) -> list[tuple[str, ...]]:
    """A row for each limit under :data:`GATE_HEADER`."""
    return [
        (
            w.name(check.task),
            w.name(check.label),
            w.rule_text(check),
            w.with_interval(w.decisive(check), w.show_limited(check)),
            w.percent(check.noise_floor),
            check.verdict,
        )
        for check in checks
    ]


def noise(floors: Sequence[NoiseFloor]) -> list[tuple[str, ...]]:
    """What re-running the same model changes, a row a task, under :data:`NOISE_HEADER`."""
    return [
        (
            w.name(floor.task),
            w.count(floor.runs),
            w.count(floor.items),
            w.with_interval(floor.nfr),
            w.percent(floor.nfr_max),
            w.percent(floor.answers_changed),
        )
        for floor in floors
    ]


def sources(document: Document) -> list[tuple[str, ...]]:
    """Where the predictions came from."""
    return [(w.name(model.label), model.role, model.source, model.format) for model in document.models]


def trade_off(document: Document, task: TaskResult) -> tuple[Markup | None, list[tuple[str, str]]]:
    """Accuracy (mean score) against negative flips of all updated models on a task, or a total: the picture (None
    where there is but one candidate), and the letters of marks with what they stand for."""
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


def panels(document: Document, task: TaskResult) -> list[tuple[str, Markup, str]]:
    """Accuracy and flips of several updated models, each on one scale: heading, picture and caption of each; nothing
    where there is but one."""
    if len(task.updates) < 2:
        return []
    levels = [(document.models[0].label, task.accuracy_old, "plain")]
    levels += [(update.label, update.accuracy, "plain") for update in task.updates]
    heading = w.quality(task)[0].upper() + w.quality(task)[1:]
    marks = [("chance", task.chance, "noise")] if task.chance is not None else []
    caption = f"Dot: measured. Line: {w.level_name(task.accuracy_old)} interval. {w.chance_words(task)}".strip()
    found = [(heading, whiskers(heading, levels, w.show_quality(task), marks=marks, zero=False), caption)]
    keys = {"nfr": "worse", "nfr_smooth": "worse", "pfr": "better", "pfr_smooth": "better", "nfr_mc": "worse"}
    for key, css in keys.items():
        rows = [(update.label, update.rates[key], css) for update in task.updates if key in update.rates]
        if len(rows) > 1:
            marks, note = _flip_marks(document, task) if key in ("nfr", "nfr_smooth") else ([], "")
            what = w.measure(key)
            heading = f"{what.name} ({what.symbol})"
            picture = whiskers(heading, rows, w.show_rate(key), marks=marks)
            found.append((heading, picture, f"{what.symbol}: {what.meaning}.{note}"))
    return found


def _flip_marks(document: Document, task: TaskResult) -> tuple[list[tuple[str, float, str]], str]:
    floors = [floor.nfr.value for floor in document.noise if floor.task == task.name]
    marks = [("limit", limit, "limit") for limit in w.limits(document, task)]
    marks += [("", floor, "noise") for floor in floors]
    return marks, f" Dotted: the noise floor, {w.percent(floors[0])}." if floors else ""


def measure_rows(task: TaskResult) -> list[tuple[str, ...]]:
    """What answers take: a row for each measure and updated model; the first two cells are from data."""
    return [
        (
            one_line(m.name, 60),
            w.name(update.label),
            *map(w.amount, (m.old, m.new)),
            w.with_interval(m.change, w.signed_amount),
        )
        for update in task.updates
        for m in update.measures
    ]


def glossary(document: Document) -> dict[str, str]:
    """The words that a report uses, explained."""
    used = dict.fromkeys(key for task in document.tasks for update in task.updates for key in update.rates)
    words = {f"{w.measure(key).name} ({w.measure(key).symbol})": w.measure(key).meaning for key in used}
    words["p"] = (
        "how often chance alone would make a difference at least this large; paired, two-sided, corrected for the "
        "number of tasks (or slices)"
    )
    level = f"{w.level_name(document.tasks[0].accuracy_old)} " if document.tasks else ""
    words["interval"] = f"[low, high]: in {level}of repetitions such a range holds the true value"
    if document.totals:
        words["total"] = "mean over the tasks, every task weighing the same"
    return words


def slice_rows(task: TaskResult, limit: int) -> list[tuple[str, ...]]:
    """The ``limit`` slices of each updated model that regress most, as the cells under :data:`SLICE_HEADER`.

    The first two are from data, to be escaped.
    """
    show = w.show_change(task)
    return [
        (
            f"{one_line(piece.column, 30)} = {one_line(piece.value, 40)}",
            update.label,
            w.count(piece.items),
            w.with_interval(piece.nfr),
            w.with_interval(piece.change, show),
            w.p_value(piece.p_adjusted),
            piece.verdict,
        )
        for update in task.updates
        for piece in update.slices[:limit]
    ]


def slices_title(task: TaskResult, limit: int) -> str:
    """What is said above :func:`slice_rows`."""
    total = max(len(update.slices) for update in task.updates)
    return f"Slices of {one_line(task.name, 80)} that regress most ({min(limit, total)} of {total})"


SliceRow: TypeAlias = tuple[str, str, int, list[Slice | None]]


def slice_table(task: TaskResult) -> tuple[list[Update], list[SliceRow], Scale] | None:
    """The updated models that have slices; in the first one's order, column, value, number of items, and the slice of
    each model (None where it was not looked at); and a scale for all changes."""
    sliced = [update for update in task.updates if update.slices]
    if not sliced:
        return None
    pieces = [{(piece.column, piece.value): piece for piece in update.slices} for update in sliced]
    changes = [piece.change for held in pieces for piece in held.values()]
    scale = fit((v for change in changes for v in (change.value, change.low, change.high)), 8, 132, zero=True)
    rows: list[SliceRow] = []
    for column, value in dict.fromkeys(key for held in pieces for key in held):
        found = [held.get((column, value)) for held in pieces]
        rows.append((column, value, max(piece.items for piece in found if piece is not None), found))
    return sliced, rows, scale
