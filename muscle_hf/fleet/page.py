"""A fleet as one HTML file: a row a task, to be sorted, with links to the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muscle_hf.fleet.settings import UpdateSettings
from muscle_hf.fleet.task import HOLD, REPORT, REPORT_FIRST, SHIP_COMPATIBLE, SHIP_PLAIN, Outcome
from muscle_hf.pipeline.plan import duration
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.report import charts, html
from muscle_hf.report import wording as w
from muscle_hf.report.charts import Scale, fit
from muscle_hf.report.markup import Markup, asset
from muscle_hf.report.text import one_line

_CHIPS = {SHIP_PLAIN: "pass", SHIP_COMPATIBLE: "pass", HOLD: "fail"}
_WIDTH = 150
_COLUMNS = {
    f"quality-{OLD}": "Accuracy now",
    f"quality-{NEW}": "Accuracy plain",
    f"quality-{COMPAT}": "Accuracy compatible",
    f"nfr-{NEW}": "NFR plain",
    f"nfr-{COMPAT}": "NFR compatible",
}


@dataclass
class Line:
    """A task on the page: its name, what came out (None where it is not done), how far it is
    (:func:`muscle_hf.fleet.run.status_of`), and the seconds that its steps took."""

    name: str
    outcome: Outcome | None
    status: tuple[str, str]
    seconds: float

    @property
    def verdict(self) -> str:
        """The verdict, or how far the task is."""
        return self.outcome.verdict if self.outcome else self.status[0]


def render(update: UpdateSettings, lines: Sequence[Line]) -> str:
    """The page; write it as UTF-8 into the folder of the fleet."""
    done = [line.outcome for line in lines if line.outcome is not None]
    highest = [found.high for outcome in done for found in outcome.now.nfr.values()]
    scale = fit([*highest, *(outcome.limit or 0.0 for outcome in done)], 6, _WIDTH - 6, zero=True)
    verdicts = Counter(line.verdict for line in lines)
    return html.page(
        "fleet.html",
        script=asset("fleet.js"),
        update=str(update),
        rows=[_row(line, scale) for line in lines],
        verdicts=sorted(verdicts.items(), key=lambda pair: (pair[0] not in _CHIPS, pair)),
        columns=_COLUMNS,
        means=_means(done),
        seconds=duration(sum(line.seconds for line in lines)),
        chained=[outcome for outcome in done if outcome.generations[1:]],
        models=(NEW, COMPAT),
    )


def _row(line: Line, scale: Scale) -> dict[str, Any]:
    """What the template shows of a task; a cell is its column's key and heading, what is shown, and the sort key."""
    row = {"name": line.name, "verdict": line.verdict, "chip": _CHIPS.get(line.verdict, "unsure"), "picture": None}
    row |= {"reason": line.status[1], "seconds": line.seconds, "price": duration(line.seconds)}
    row |= {"returned": "", "links": []}
    figures: dict[str, tuple[str, str]] = {}
    if (outcome := line.outcome) is not None:
        now, show = outcome.now, w.percent if outcome.kind == "correct" else w.decimal
        figures = {f"quality-{name}": (show(e.value), f"{e.value:.6g}") for name, e in outcome.quality.items()}
        figures |= {f"nfr-{name}": (w.percent(e.value), f"{e.value:.6g}") for name, e in now.nfr.items()}
        reports = {"report": REPORT} | ({"against the first version": REPORT_FIRST} if outcome.generations[1:] else {})
        row |= {"reason": outcome.reason, "picture": _picture(outcome, scale)}
        row["links"] = [(f"{line.name}/{file}", text) for text, file in reports.items()]
        row["chip"] = "unsure" if outcome.undecided else row["chip"]
        if (found := now.returned).total:
            row["returned"] = f"{w.count(found.count or 0)} of {w.count(found.total)} shed errors come back"
    return {**row, "cells": [(key, text, *figures.get(key, (w.ABSENT, ""))) for key, text in _COLUMNS.items()]}


def _means(done: Sequence[Outcome]) -> dict[str, str]:
    """Means over the tasks whose answers are right or wrong, each weighing the same."""
    graded = [outcome for outcome in done if outcome.kind == "correct"]
    found: dict[str, list[float]] = {key: [] for key in _COLUMNS}
    for outcome in graded:
        for kind, estimates in (("quality", outcome.quality), ("nfr", outcome.now.nfr)):
            for name, estimate in estimates.items():
                found.get(f"{kind}-{name}", []).append(estimate.value)
    return {key: w.percent(sum(values) / len(values)) for key, values in found.items()} if graded else {}


def _picture(outcome: Outcome, scale: Scale) -> Markup:
    nfr = outcome.now.nfr
    rows = [charts.Row("plain", nfr[NEW], "trails"), charts.Row("compatible", nfr[COMPAT], "better")]
    words = "; ".join(f"{row.label} {w.with_interval(row.estimate)}" for row in rows)
    label = f"Negative flips of {one_line(outcome.task, 60)}: {words}"
    return charts.small_whiskers(rows, scale, label, outcome.limit)
