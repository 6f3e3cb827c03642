"""The slices of a task on the HTML page: where the update regresses most comes first."""

from __future__ import annotations

from muscle_hf.compare.document import Slice, TaskResult, Update
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup, join, tag
from muscle_hf.report.scales import Scale, fit
from muscle_hf.report.text import one_line

# Slices that are shown before the fold.
_FIRST = 12
_CSS = {"worse": "worse", "better": "better"}


def slices(task: TaskResult, index: int) -> Markup | None:
    """A row for each slice, in the order of the first updated model that has it; a column for each updated model.

    Args:
        task: The task.
        index: Its place in the document, by which the list of flips knows it.
    """
    sliced = [update for update in task.updates if update.slices]
    if not sliced:
        return None
    pieces = [{(piece.column, piece.value): piece for piece in update.slices} for update in sliced]
    changes = [piece.change for held in pieces for piece in held.values()]
    scale = fit((v for change in changes for v in (change.value, change.low, change.high)), 8, 132, zero=True)
    keys = list(dict.fromkeys(key for held in pieces for key in held))
    rows = [_row(task, key, [held.get(key) for held in pieces], scale, index) for key in keys]
    first, rest = rows[:_FIRST], rows[_FIRST:]
    note = (
        f"Change of {w.quality(task)} on the items that share a value; where {w.name(sliced[0].label)} regresses most "
        "comes first. Coloured where it is beyond chance after correction for the number of slices. "
        "Press a slice to see its flips."
    )
    return join(
        tag("h4", "Slices"),
        tag("p", note, class_="note"),
        _table(sliced, first, "Slices"),
        tag("details", tag("summary", f"{len(rest)} more slices"), _table(sliced, rest, "More slices"), class_="more")
        if rest
        else None,
    )


def _table(sliced: list[Update], rows: list[Markup], caption: str) -> Markup:
    head = tag("tr", tag("th", "Slice", scope="col"), [tag("th", w.name(u.label), scope="col") for u in sliced])
    table = tag("table", tag("caption", caption, class_="hidden"), tag("thead", head), tag("tbody", rows))
    return tag("div", table, class_="scroll slices", tabindex="0", role="region", aria_label=caption)


def _row(task: TaskResult, key: tuple[str, str], pieces: list[Slice | None], scale: Scale, index: int) -> Markup:
    column, value = key
    name = f"{one_line(column, 30)} = {one_line(value, 40)}"
    items = max(piece.items for piece in pieces if piece is not None)
    link = tag("button", name, type="button", class_="link", data_task=index, data_column=column, data_value=value)
    header = tag("th", link, tag("span", f"{w.count(items)} items", class_="soft"), scope="row")
    return tag("tr", header, [_cell(task, piece, scale) for piece in pieces])


def _cell(task: TaskResult, piece: Slice | None, scale: Scale) -> Markup:
    if piece is None:
        return tag("td", w.ABSENT)
    show, css = w.show_change(task), _CSS.get(piece.verdict, "plain")
    numbers = f"{w.measure(w.negative_key(task)).symbol} {w.percent(piece.nfr.value)}, {w.p_equals(piece.p_adjusted)}"
    picture = charts.bare_whisker(piece.change, scale, css, w.with_interval(piece.change, show))
    words = tag("div", tag("span", show(piece.change.value), class_=css), tag("span", numbers, class_="soft"))
    return tag("td", tag("div", picture, words, class_="cell"))
