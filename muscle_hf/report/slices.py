"""The slices of a task on the HTML page: where an update regresses most comes first."""

from __future__ import annotations

from muscle_hf.compare.document import Slice, TaskResult, Update
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup, join, tag
from muscle_hf.report.scales import Scale, fit
from muscle_hf.report.text import one_line

# Slices of an update that are shown before the fold.
_FIRST = 10


def slices(task: TaskResult, index: int) -> Markup | None:
    """The slices of every updated model that has some."""
    sliced = [update for update in task.updates if update.slices]
    if not sliced:
        return None
    quality = w.quality(task)
    return join(
        tag("h4", "Slices"),
        tag(
            "p",
            f"Change of {quality} on the items that share a value, the worst first. Coloured where it is beyond "
            "chance after correction for the number of slices. Press a slice to see its flips.",
            class_="note",
        ),
        tag("div", [_slices_of(task, update, index) for update in sliced], class_="grid wide"),
    )


def _slices_of(task: TaskResult, update: Update, index: int) -> Markup:
    scale = fit((v for s in update.slices for v in (s.change.value, s.change.low, s.change.high)), 8, 152, zero=True)
    rows = [_row(task, piece, scale, index) for piece in update.slices]
    first, rest = rows[:_FIRST], rows[_FIRST:]
    return tag(
        "figure",
        tag("h4", update.label),
        _table(task, update, first),
        tag("details", tag("summary", f"{len(rest)} more"), _table(task, update, rest), class_="more")
        if rest
        else None,
    )


def _table(task: TaskResult, update: Update, rows: list[Markup]) -> Markup:
    symbol = w.measure(w.negative_key(task)).symbol
    head = tag(
        "tr",
        tag("th", "Slice", scope="col"),
        tag("th", "Change, with interval", scope="col", class_="picture"),
        tag("th", "Change", scope="col"),
        tag("th", symbol, scope="col"),
        tag("th", "Verdict", scope="col"),
    )
    caption = f"Slices of {update.label}"
    table = tag("table", tag("caption", caption, class_="hidden"), tag("thead", head), tag("tbody", rows))
    return tag("div", table, class_="scroll slices", tabindex="0", role="region", aria_label=caption)


def _row(task: TaskResult, piece: Slice, scale: Scale, index: int) -> Markup:
    show = w.show_change(task)
    css = {"worse": "worse", "better": "better"}.get(piece.verdict, "plain")
    name = f"{one_line(piece.column, 30)} = {one_line(piece.value, 40)}"
    picture = charts.bare_whisker(piece.change, scale, css, w.with_interval(piece.change, show))
    link = tag(
        "button", name, type="button", class_="link", data_task=index, data_column=piece.column, data_value=piece.value
    )
    return tag(
        "tr",
        tag("th", link, tag("span", f"{w.count(piece.items)} items", class_="soft"), scope="row"),
        tag("td", picture, class_="picture"),
        tag("td", show(piece.change.value), class_=css),
        tag("td", w.percent(piece.nfr.value)),
        tag("td", piece.verdict, tag("span", w.p_equals(piece.p_adjusted), class_="soft")),
    )
