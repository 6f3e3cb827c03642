"""A fleet as one HTML file: a row a task, to be sorted, with links to the reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from muscle_hf.fleet.settings import FleetTask, UpdateSettings
from muscle_hf.fleet.task import HOLD, REPORT, REPORT_FIRST, SHIP_COMPATIBLE, SHIP_PLAIN, Generation, Outcome
from muscle_hf.pipeline.plan import duration
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.report import charts, html
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup, asset
from muscle_hf.report.scales import Scale, fit
from muscle_hf.report.text import one_line

_CHIPS = {SHIP_PLAIN: "pass", SHIP_COMPATIBLE: "pass", HOLD: "fail"}
_WIDTH = 150
COLUMNS = {
    f"quality-{OLD}": "Accuracy now",
    f"quality-{NEW}": "Accuracy plain",
    f"quality-{COMPAT}": "Accuracy compatible",
    f"nfr-{NEW}": "NFR plain",
    f"nfr-{COMPAT}": "NFR compatible",
}


@dataclass
class Line:
    """A task on the page.

    Args:
        name: Of the task.
        outcome: None where it is not done.
        status: From :func:`muscle_hf.fleet.run.status_of`.
        seconds: That its steps took in all.
        trained: Of these, the compatibility adapter.
        picture: Negative flips of both updates, against the limit.
    """

    name: str
    outcome: Outcome | None
    status: tuple[str, str]
    seconds: float
    trained: float
    picture: Markup | None = None

    @classmethod
    def of(
        cls, task: FleetTask, outcome: Outcome | None, status: tuple[str, str], state: Mapping[str, Mapping[str, Any]]
    ) -> Line:
        """From what is noted of a task."""
        took = {step: found.get("seconds", 0.0) for step, found in state.items()}
        return cls(task.name, outcome, status, sum(took.values()), took.get(COMPAT, 0.0))

    # ---- What the template shows ----

    @property
    def verdict(self) -> str:
        """The verdict, or how far the task is."""
        return self.outcome.verdict if self.outcome else {"open": "not run"}.get(self.status[0], self.status[0])

    @property
    def chip(self) -> str:
        """The verdict's style."""
        undecided = self.outcome is not None and self.outcome.undecided
        return "unsure" if undecided else _CHIPS.get(self.verdict, "unsure")

    @property
    def reason(self) -> str:
        """Why."""
        return self.outcome.reason if self.outcome else self.status[1]

    @property
    def cells(self) -> list[tuple[str, str, str, str]]:
        """Of each of :data:`COLUMNS` its key and heading, what is shown, and what it is sorted by."""
        found = self._figures()
        return [(key, label, *found.get(key, (w.ABSENT, ""))) for key, label in COLUMNS.items()]

    def _figures(self) -> dict[str, tuple[str, str]]:
        if self.outcome is None:
            return {}
        show = w.percent if self.outcome.kind == "correct" else w.decimal
        figures = {f"quality-{name}": (show, found.value) for name, found in self.outcome.quality.items()}
        figures |= {f"nfr-{name}": (w.percent, found.value) for name, found in self.outcome.now.nfr.items()}
        return {key: (shown(value), f"{value:.6g}") for key, (shown, value) in figures.items()}

    @property
    def price(self) -> str:
        """Time of all steps."""
        return duration(self.seconds) if self.seconds else w.ABSENT

    @property
    def returned(self) -> str:
        """Errors of what users see now that the compatibility adapter makes again."""
        if self.outcome is None or not self.outcome.now.returned.total:
            return ""
        found = self.outcome.now.returned
        return f"{w.count(found.count or 0)} of {w.count(found.total or 0)} shed errors return"

    @property
    def links(self) -> list[tuple[str, str]]:
        """Addresses and texts of the reports."""
        if self.outcome is None:
            return []
        first = [(f"{self.name}/{REPORT_FIRST}", "against the first version")] if self.generations[1:] else []
        return [(f"{self.name}/{REPORT}", "report"), *first]

    @property
    def generations(self) -> list[Generation]:
        """The versions that users saw, the first one first."""
        return self.outcome.generations if self.outcome else []


def render(update: UpdateSettings, lines: Sequence[Line]) -> str:
    """The page; write it as UTF-8 into the folder of the fleet."""
    done = [line.outcome for line in lines if line.outcome is not None]
    found = [outcome.now.nfr[model] for outcome in done for model in (NEW, COMPAT)]
    limits = [outcome.limit for outcome in done if outcome.limit is not None]
    scale = fit([*(e.high for e in found), *limits], 6, _WIDTH - 6, zero=True)
    for line in lines:
        if line.outcome is not None:
            line.picture = _picture(line.outcome, scale)
    verdicts = Counter(line.verdict for line in lines)
    return html.page(
        "fleet.html",
        script=asset("fleet.js"),
        update=update,
        lines=lines,
        verdicts=sorted(verdicts.items(), key=lambda pair: list(_CHIPS).index(pair[0]) if pair[0] in _CHIPS else 9),
        means=_means(done),
        seconds=duration(sum(line.seconds for line in lines)),
        chained=[line for line in lines if line.generations[1:]],
        models=(NEW, COMPAT),
        columns=COLUMNS,
    )


def _means(done: Sequence[Outcome]) -> dict[str, str]:
    """Means over the tasks whose answers are right or wrong, each weighing the same."""
    graded = [outcome for outcome in done if outcome.kind == "correct"]
    if not graded:
        return {}

    def mean(values: Sequence[float]) -> str:
        return w.percent(sum(values) / len(values))

    quality = {f"quality-{name}": mean([o.quality[name].value for o in graded]) for name in (OLD, NEW, COMPAT)}
    return quality | {f"nfr-{name}": mean([o.now.nfr[name].value for o in graded]) for name in (NEW, COMPAT)}


def _picture(outcome: Outcome, scale: Scale) -> Markup:
    nfr = outcome.now.nfr
    rows = [charts.Row("plain", nfr[NEW], "trails"), charts.Row("compatible", nfr[COMPAT], "better")]
    words = "; ".join(f"{row.label} {w.with_interval(row.estimate)}" for row in rows)
    label = f"Negative flips of {one_line(outcome.task, 60)}: {words}"
    return charts.small_whiskers(rows, scale, label, outcome.limit)
