"""A fleet as one HTML file: a row a task, to be sorted, with links to the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from muscle_hf.fleet.settings import UpdateSettings
from muscle_hf.fleet.task import HOLD, REPORT, REPORT_FIRST, SHIP_COMPATIBLE, SHIP_PLAIN, Outcome
from muscle_hf.metrics.intervals import Estimate
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
    ("quality", OLD): "Accuracy now",
    ("quality", NEW): "Accuracy plain",
    ("quality", COMPAT): "Accuracy compatible",
    ("nfr", NEW): "NFR plain",
    ("nfr", COMPAT): "NFR compatible",
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

    @property
    def chip(self) -> str:
        """The colour of the verdict."""
        return "unsure" if self.outcome and self.outcome.undecided else _CHIPS.get(self.verdict, "unsure")

    def figure(self, kind: str, model: str) -> Estimate | None:
        """``quality`` or ``nfr`` of a model; None where the task is not done."""
        return self.outcome and (self.outcome.quality if kind == "quality" else self.outcome.now.nfr)[model]

    def shown(self, kind: str, model: str) -> str:
        """A figure as text; a mean score is no share of items."""
        scored = kind == "quality" and self.outcome is not None and self.outcome.kind != "correct"
        found = self.figure(kind, model)
        return w.ABSENT if found is None else w.decimal(found.value) if scored else w.percent(found.value)


def render(update: UpdateSettings, lines: Sequence[Line]) -> str:
    """The page; write it as UTF-8 into the folder of the fleet."""
    done = [line.outcome for line in lines if line.outcome is not None]
    highest = [found.high for outcome in done for found in outcome.now.nfr.values()]
    scale = fit([*highest, *(outcome.limit or 0.0 for outcome in done)], 6, _WIDTH - 6, zero=True)
    # Means over the tasks whose answers are right or wrong, each weighing the same.
    graded = [line for line in lines if line.outcome and line.outcome.kind == "correct"]
    means = {key: fmean(found.value for line in graded if (found := line.figure(*key))) for key in _COLUMNS if graded}
    verdicts = Counter(line.verdict for line in lines)
    return html.page(
        "fleet.html",
        script=asset("fleet.js"),
        update=str(update),
        lines=lines,
        pictures=[line.outcome and _picture(line.outcome, scale) for line in lines],
        verdicts=sorted(verdicts.items(), key=lambda pair: (pair[0] not in _CHIPS, pair)),
        columns=_COLUMNS,
        means=means,
        duration=duration,
        report=REPORT,
        report_first=REPORT_FIRST,
        chained=[outcome for outcome in done if outcome.generations[1:]],
        models=(NEW, COMPAT),
    )


def _picture(outcome: Outcome, scale: Scale) -> Markup:
    nfr = outcome.now.nfr
    rows = [charts.Row("plain", nfr[NEW], "trails"), charts.Row("compatible", nfr[COMPAT], "better")]
    words = "; ".join(f"{row.label} {w.with_interval(row.estimate)}" for row in rows)
    label = f"Negative flips of {one_line(outcome.task, 60)}: {words}"
    return charts.small_whiskers(rows, scale, label, outcome.limit)
