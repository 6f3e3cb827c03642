"""The table of a run: each candidate for the update against the old model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle_hf.compare.document import plain
from muscle_hf.evaluation.predictions import Prediction, read_predictions, update_between
from muscle_hf.evaluation.tasks import METRICS
from muscle_hf.files import read_json
from muscle_hf.metrics.intervals import Estimate

if TYPE_CHECKING:
    from rich.table import Table

RESULT_FILE = "result.json"
PREDICTIONS = "predictions"
# What each set of predictions is, in the order of the table.
OLD, NEW, CONTROL, COMPAT = "old", "new", "control", "muscle"
TITLES = {
    OLD: "v1",
    NEW: "v2",
    CONTROL: "v2 + CE (control)",
    COMPAT: "MUSCLE",
}
_STYLES = {COMPAT: "bold", "both": "bright_black"}


@dataclass(frozen=True)
class Row:
    """One model of a run (``old``, ``new``, ``control``, ``muscle``, or what else was compared); rates are fractions,
    nan where there are none: accuracy or mean similarity, negative flips against v1 (similarities: items that got
    worse), these with flips among wrong answers where there are choices, positive flips; and NFR and quality minus
    v2's with their 95 % intervals (paired bootstrap over items), None for v1 and v2."""

    model: str
    quality: float
    nfr: float = math.nan
    nfr_mc: float = math.nan
    pfr: float = math.nan
    change: Estimate | None = None
    quality_change: Estimate | None = None


@dataclass(frozen=True)
class Result:
    """The figures of a run: task, metric (``acc``, ``exact_match``, ``rouge1``, ...), test items, a row a model."""

    task: str
    metric: str
    items: int
    rows: list[Row]

    @classmethod
    def of(cls, predictions: Mapping[str, Sequence[Prediction]]) -> Result:
        """Compare predictions by the models' names: ``old``, ``new``, and any others, in the order of the table."""
        first, without = predictions[OLD][0], update_between(predictions[OLD], predictions[NEW])
        rows = [Row(OLD, float(without.before.mean()))]
        for model in (name for name in predictions if name != OLD):
            update = without if model == NEW else update_between(predictions[OLD], predictions[model])
            found = update.numbers()
            row = Row(model, found["acc" if update.kind == "correct" else "score"], found["nfr"], pfr=found["pfr"])
            if first.metric in METRICS["choice"]:
                row = replace(row, nfr_mc=found["nfr_mc"])
            if model != NEW:
                change = update.mean(update.loss - without.loss)
                row = replace(row, change=change, quality_change=replace(update, before=without.after).change)
            rows.append(row)
        return cls(first.task, first.metric, len(predictions[OLD]), rows)

    def row(self, model: str) -> Row:
        """The row of a model."""
        return {row.model: row for row in self.rows}[model]

    @property
    def warnings(self) -> list[str]:
        """What a reader of the table must know, as sentences."""
        control = next((row for row in self.rows if row.model == CONTROL), None)
        change = None if control is None else control.quality_change
        if change is None or not change.low > 0:
            return []
        return [
            "v2's adapter has not converged: plain cross-entropy alone, the control, is better by "
            f"{interval_text(change)} points. Compatibility follows v2 as it is: give the control's "
            "adapter as new.adapter to a run with an output_dir of its own"
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; nan becomes null."""
        return plain(self)


def load_result_predictions(folder: Path) -> Mapping[str, list[Prediction]]:
    """The predictions of a finished run, by model; of models that its last settings left out nothing is read."""
    rows = read_json(folder / RESULT_FILE, "result of a run")["result"]["rows"]
    return {row["model"]: read_predictions(folder / PREDICTIONS / f"{row['model']}.jsonl") for row in rows}


_QUALITY = {
    "acc": "Accuracy",
    "acc_norm": "Accuracy (norm.)",
    "acc_bytes": "Accuracy (by bytes)",
    "exact_match": "Exact match",
}


def columns(metric: str) -> list[str]:
    """The headings of the table for a metric."""
    flips = metric in _QUALITY
    worse, better = ("NFR", "PFR") if flips else ("NFR~", "PFR~")
    mc = ["NFR_mc"] if metric in METRICS["choice"] else []
    return ["Model", _QUALITY.get(metric, metric.upper()), worse, *mc, better, f"Change of {worse} (95 %)"]


def cells(result: Result, names: Mapping[str, str] = TITLES) -> list[list[str]]:
    """The table's rows as text, in percent (changes in percentage points)."""
    return [
        [
            names[row.model],
            _percent(row.quality),
            _percent(row.nfr),
            *([_percent(row.nfr_mc)] if result.metric in METRICS["choice"] else []),
            _percent(row.pfr),
            "" if row.change is None else interval_text(row.change),
        ]
        for row in result.rows
    ]


def to_rich(result: Result, names: Mapping[str, str] = TITLES, *, short: bool = False) -> Table:
    """The table for the terminal; ``short``: of the flips only NFR."""
    from rich import box
    from rich.table import Table

    table = Table(title=f"{result.task}: {result.items} test items, percent", box=box.SIMPLE_HEAD)
    lines = [columns(result.metric), *cells(result, names)]
    (*headings, change), *rows = [[*line[:3], line[-1]] for line in lines] if short else lines
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    # The widest, which narrow terminals break at its blanks rather than cut off.
    table.add_column(change, justify="right")
    for row, texts in zip(result.rows, rows, strict=True):
        table.add_row(*texts, style=_STYLES.get(row.model))
    return table


def to_markdown(result: Result) -> str:
    """The table for a document."""
    headings = columns(result.metric)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *cells(result)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.2f}"


def interval_text(estimate: Estimate) -> str:
    """A change with its interval, in percentage points."""
    return f"{100 * estimate.value:+.2f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
