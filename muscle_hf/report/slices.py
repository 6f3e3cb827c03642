"""The slices of a task for the HTML page: where the update regresses most comes first."""

from __future__ import annotations

from typing import NamedTuple

from muscle_hf.compare.document import Slice, TaskResult, Update
from muscle_hf.report.scales import Scale, fit


class Row(NamedTuple):
    """A slice: what it is, and how each updated model does on it (None where it was not looked at)."""

    column: str
    value: str
    items: int
    pieces: list[Slice | None]


class Table(NamedTuple):
    """Slices of the updated models that have any, in the first one's order, on one scale of changes."""

    updates: list[Update]
    rows: list[Row]
    scale: Scale


def table(task: TaskResult) -> Table | None:
    """The slices of a task; None if there are none."""
    sliced = [update for update in task.updates if update.slices]
    if not sliced:
        return None
    pieces = [{(piece.column, piece.value): piece for piece in update.slices} for update in sliced]
    changes = [piece.change for held in pieces for piece in held.values()]
    scale = fit((v for change in changes for v in (change.value, change.low, change.high)), 8, 132, zero=True)
    rows = []
    for key in dict.fromkeys(key for held in pieces for key in held):
        found = [held.get(key) for held in pieces]
        rows.append(Row(*key, max(piece.items for piece in found if piece is not None), found))
    return Table(sliced, rows, scale)
