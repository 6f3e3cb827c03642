"""The path of a dial: a table for the terminal and a page with its pictures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report import charts, html
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup
from muscle_hf.report.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from muscle_hf.dial.path import DialPath, DialPoint

_RULES = {
    "least_nfr_at_no_loss": "the least {nfr} at no loss of {quality}",
    "least_nfr": "the least {nfr}",
    "most_accurate": "the highest {quality}",
}


def _names(path: DialPath) -> tuple[str, str]:
    """What the two axes are called."""
    return w.measure(w.negative_key(path)).symbol, one_line(w.quality(path), 40)


def columns(path: DialPath) -> list[str]:
    """Headings of the table."""
    nfr, quality = _names(path)
    mc = ["NFR_mc"] if path.new.nfr_mc is not None else []
    pfr = "PFR" if path.kind == "correct" else "PFR~"
    change = "Δ pts" if path.kind == "correct" else "Δ"
    return ["t", "rank", quality, change, nfr, "Δ pts", *mc, pfr]


def cells(path: DialPath) -> list[list[str]]:
    """The rows of the table: one a point, its changes against v2 with paired intervals."""
    show, show_change = w.show_quality(path), w.show_change(path)
    rows = []
    for point in path.points:
        row = [_named(point), str(point.rank), w.with_interval(point.accuracy, show)]
        row += [_change(point.change_of_accuracy, show_change), w.with_interval(point.nfr)]
        row += [_change(point.change_of_nfr, w.points)]
        row += [] if point.nfr_mc is None else [w.with_interval(point.nfr_mc)]
        rows.append([*row, w.with_interval(point.pfr)])
    return rows


def _named(point: DialPoint) -> str:
    return f"{point.t:g}" + {0.0: " v2", 1.0: " compat"}.get(point.t, "")


def _change(estimate: Estimate | None, show: w.Show) -> str:
    """A change without its unit, which the heading names."""
    return "" if estimate is None else w.with_interval(estimate, lambda value: show(value).removesuffix(" pts"))


def table(path: DialPath, chosen: DialPoint | None) -> Table:
    """The path for a terminal, the chosen point in bold."""
    from muscle_hf.report import terminal

    level, show = w.level_name(path.accuracy_old), w.show_quality(path)
    title = f"{one_line(path.task, 80)}: {w.count(path.items)} validation items"
    caption = (
        f"[low, high]: {level} intervals. Changes: against v2, on the same items. v1's {_names(path)[1]}: "
        f"{w.with_interval(path.accuracy_old, show)}."
    )
    bold = None if chosen is None else path.points.index(chosen)
    return terminal.table(title, columns(path), caption, cells(path), chosen=bold)


def verdict(path: DialPath, chosen: DialPoint | None, rule: str, max_loss: float = 0.0) -> str:
    """One sentence: which point was chosen, by which rule, and what it changes; or that none qualifies."""
    nfr, quality = _names(path)
    wanted = _RULES.get(rule, "a rule of your own").format(nfr=nfr, quality=quality)
    show, show_change = w.show_quality(path), w.show_change(path)
    if rule == "least_nfr_at_no_loss" and max_loss:
        wanted += f" beyond {show_change(max_loss).removeprefix('+')}"
    if chosen is None:
        why = {
            "least_nfr_at_no_loss": f"none has less {nfr} than v2 without losing {quality}",
            "least_nfr": f"none has less {nfr} than v2",
            "most_accurate": f"none has a higher {quality} than v2",
        }.get(rule, "it chooses none of them")
        return f"No point qualifies for {wanted}: {why}. Nothing is saved; on this path v2's adapter stays the best."
    how = "chosen by hand" if rule == "choose" else f"chosen for {wanted}"
    words = f"t = {chosen.t:g} (rank {chosen.rank}), {how}: {nfr} {w.percent(chosen.nfr.value)}"
    if chosen.change_of_nfr is not None:
        words += f" ({w.with_interval(chosen.change_of_nfr, w.points)} against v2)"
    words += f", {quality} {show(chosen.accuracy.value)}"
    if chosen.change_of_accuracy is not None:
        words += f" ({w.with_interval(chosen.change_of_accuracy, show_change)})"
        change = chosen.change_of_nfr
        if change is not None and change.low <= 0 <= change.high:
            words += f". Its change of {nfr} may be chance: the interval holds zero"
    return words + "."


def caution(split: str) -> str:
    """What must be said beside every choice."""
    words = (
        "The point was chosen on these items, so its figures here are too good. Measure it on test items that took "
        "no part, with muscle-hf evaluate and muscle-hf compare, before you report or ship it."
    )
    if split == "test":
        return f"These are test items, which are then no test any more. {words}"
    return words


def page(path: DialPath, chosen: DialPoint | None, rule: str, max_loss: float = 0.0, split: str = "validation") -> str:
    """The path as one HTML file in the style of the reports, with the point that was chosen by a rule on the items of
    a split; no script. Write it as UTF-8."""
    nfr, quality = _names(path)
    titles = [f"Change of {name} along the path" for name in (nfr, quality)]
    changes = [
        _changes(path, chosen, titles[0], lambda point: point.change_of_nfr, w.points),
        _changes(path, chosen, titles[1], lambda point: point.change_of_accuracy, w.show_change(path)),
    ]
    better = ("Left of v2: fewer negative flips.", "Right of v2: better answers.")
    return html.page(
        "dial.html",
        path=path,
        chosen=chosen,
        split=split,
        verdict=verdict(path, chosen, rule, max_loss),
        caution=caution(split),
        nfr=nfr,
        quality=quality,
        picture=_path_picture(path, chosen),
        changes=zip(titles, changes, better, strict=True),
        columns=columns(path),
        cells=cells(path),
    )


def _path_picture(path: DialPath, chosen: DialPoint | None) -> Markup:
    nfr, quality = _names(path)
    # Without intervals, which overlap, being about the same items.
    points = [
        charts.Point(f"{point.t:g}", _bare(point.nfr), _bare(point.accuracy), leads=point == chosen)
        for point in path.points
    ]
    label, floor = f"{quality} against {nfr} along the path", _bare(path.new.accuracy)
    return charts.trade_off(
        label, points, (f"v2's {quality}", floor), (nfr, quality), (w.percent, w.show_quality(path))
    )


def _bare(estimate: Estimate) -> Estimate:
    return replace(estimate, low=math.nan, high=math.nan)


def _changes(
    path: DialPath, chosen: DialPoint | None, label: str, change: Callable[[DialPoint], Estimate | None], show: w.Show
) -> Markup:
    """A change against v2 at each other point, with its paired interval."""
    rows = [
        charts.Row(f"t = {point.t:g}", found, "leads" if point == chosen else "trails")
        for point in path.points
        if (found := change(point)) is not None
    ]
    return charts.whiskers(label, rows, show, marks=[charts.Mark("v2", 0.0, "zero")])
