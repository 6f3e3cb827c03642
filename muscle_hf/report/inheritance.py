"""The audit of inherited errors: its words and rows in every report."""

from __future__ import annotations

from muscle_hf.compare.document import Flip, Inheritance, TaskResult, Update
from muscle_hf.compare.inheritance import ENOUGH
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report import wording as w
from muscle_hf.report.text import one_line


def audited(task: TaskResult) -> list[tuple[Update, Inheritance]]:
    """The models that an audit was made of."""
    return [(update, update.inheritance) for update in task.updates if update.inheritance is not None]


def title(task: TaskResult) -> str:
    """Heading of the audit."""
    what = "Errors of old that come back" if task.kind == "correct" else "Gains over old that are lost again"
    return f"{what}: {one_line(task.name, 60)}"


def explanation(task: TaskResult) -> str:
    """What is counted, among how many items, and what it would be without any training for it."""
    found = audited(task)[0][1]
    if not found.shed:
        gains = "old has wrong and new right" if task.kind == "correct" else "new scores higher on than old"
        return f"There is no item that {gains}: nothing can come back."
    shed, control = (
        w.count(found.shed),
        "A control among the models shows how often that happens without old's influence.",
    )
    if task.kind == "score":
        return (
            f"Shares of the {shed} items that new scores higher on than old. Back at old's score: the gain is lost "
            f"again, as if old's answer had been taken over. {control}"
        )
    words = (
        f"Shares of the {shed} items that old has wrong and new right. Wrong again: what the update mended is broken. "
        f"With old's answer: by the very answer that old gave, as if taken over from it. {control}"
    )
    usual = found.usual
    if usual is None or not usual.total:
        return words
    if usual.count == usual.total:
        return f"{words} Here all wrong answers are old's, as with two choices."
    alike = f"{w.with_interval(usual)} of {w.count(usual.total)} items"
    return (
        f"{words} Where old and new are both wrong they say the same in {alike}: so often do two versions err alike."
    )


def header(task: TaskResult) -> tuple[str, ...]:
    """Headings of :func:`rows`."""
    if task.kind == "score":
        return ("Model", "Not better than old", "Back at old's score", "Below it", "Falls elsewhere")
    return ("Model", "Wrong again", "With old's answer", "With another", "New errors elsewhere")


def rows(task: TaskResult) -> list[tuple[str, ...]]:
    """A row for each audited model, as cells under :func:`header`; the first is from data, to be escaped."""
    return [
        (
            update.label,
            counted(found.returned),
            counted(found.inherited),
            w.ABSENT
            if (same := found.inherited) is None
            else w.count((found.returned.count or 0) - (same.count or 0)),
            counted(found.fresh),
        )
        for update, found in audited(task)
    ]


def counted(rate: Estimate | None) -> str:
    """``11 of 53: 20.8% [12.0, 33.5]``."""
    if rate is None or not rate.total:
        return w.ABSENT
    return f"{w.count(rate.count or 0)} of {w.count(rate.total)}: {w.with_interval(rate)}"


def slice_header(task: TaskResult) -> tuple[str, ...]:
    """Headings of :func:`slice_rows`."""
    return ("Slice", *header(task)[:3])


def slice_rows(task: TaskResult, limit: int) -> list[tuple[str, ...]]:
    """The ``limit`` slices of each model that inherit most surely, of those with enough shed errors to say anything.

    The first two cells are from data, to be escaped.
    """
    return [
        (
            f"{one_line(piece.column, 30)} = {one_line(piece.value, 40)}",
            update.label,
            counted(piece.returned),
            counted(piece.inherited),
        )
        for update, found in audited(task)
        for piece in [p for p in found.slices if p.returned.count and (p.returned.total or 0) >= ENOUGH][:limit]
    ]


def items(task: TaskResult, limit: int) -> list[Flip]:
    """The first ``limit`` flips that a model makes an error of old again, those with old's own answer first."""
    found = [flip for flip in task.flips if flip.inherited]
    return sorted(found, key=lambda flip: "same" not in flip.inherited.values())[:limit]


def total(task: TaskResult) -> int:
    """Number of listed items with an error that some model makes again."""
    return sum(bool(flip.inherited) for flip in task.flips)
