"""The study's pictures, as SVG files that stand alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from answers import BOTH, V1, V2
from compared import CONTROL, Seeds, over_cells, with_model
from page import PageRow

from muscle_hf.metrics import Estimate
from muscle_hf.report import charts, wording
from muscle_hf.report.markup import Markup, asset

# In a cell's picture, where more would hide each other.
DRAWN = ("ce", "ce_long", "muscle", "muscle_ce", "focal_ce", "transfer_mean", "transfer_calibrated",
         "long_transfer_mean", "long_transfer_calibrated",
         "ce_longer_dropout", "long_transfer_mean_dropout", "ce_long_dropout_from_old",
         "transfer_mean_dropout_from_old", "long_transfer_mean_dropout_from_old")  # fmt: skip
# Over all cells: methods, each against its control.
PAIRS = (("muscle", CONTROL), ("long_transfer_mean", "ce_longer"))


def picture(title: str, figures: Mapping[str, Mapping[str, float]], seeds: Seeds) -> str:
    """Accuracy against NFR of v2, the controls and the main methods, as far as they have all seeds of the cell, as an
    SVG that stands alone."""
    points = []
    for name in (V2, *DRAWN, BOTH):
        if name not in figures or len(with_model(seeds, name)) < len(seeds):
            continue
        row = figures[name]
        better = [
            other for other in figures.values() if other["nfr"] < row["nfr"] and other["acc_new"] > row["acc_new"]
        ]
        each = [seed.figures(name) for seed in with_model(seeds, name)]
        flips, accuracy = (
            Estimate(
                row[figure],
                min(one[figure] for one in each),
                max(one[figure] for one in each),
                math.nan,
                "range of seeds",
            )
            for figure in ("nfr", "acc_new")
        )
        label = "both" if name == BOTH else name.replace("transfer_", "").replace("_dropout_from_old", "@v1")
        label = label.replace("dropout", "drop")
        points.append(charts.Point(label, flips, accuracy, not better))
    old = Estimate(figures[V2]["acc_old"], math.nan, math.nan)
    axes = ("negative flips", "mean similarity" if seeds[0].scored else "accuracy")
    return alone(charts.trade_off(title, points, (V1, old), axes, (wording.percent,) * 2, None))


def page_picture(rows: list[PageRow]) -> str:
    """Accuracy against negative flips, means over the cells, as an SVG that stands alone."""
    points = []
    for row in rows:
        flips, accuracy = (Estimate(mean, mean, mean) for mean in (float(row.nfr.mean()), float(row.accuracy.mean())))
        leads = not any(other.nfr.mean() < flips.value and other.accuracy.mean() > accuracy.value for other in rows)
        points.append(charts.Point(row.label, flips, accuracy, leads))
    axes = ("negative flips", "accuracy")
    title = "Accuracy against negative flips, means over six updates"
    unknown = Estimate(math.nan, math.nan, math.nan)
    return alone(charts.trade_off(title, points, ("", unknown), axes, (wording.percent,) * 2, None))


def overview(cells: Mapping[str, Seeds], name: str, reference: str) -> dict[str, str]:
    """A method's changes of NFR and of accuracy against a control over the cells that have both: an SVG a figure.

    Coloured is what is not chance, after Holm's correction over the cells.
    """
    drawn = {}
    for figure, words, good in (("nfr", "negative flips", -1), ("acc_new", "accuracy", 1)):
        rows = []
        for cell, (estimate, p) in over_cells(cells, name, reference, figure).items():
            css = "better" if estimate.value * good > 0 else "worse"
            rows.append(charts.Row(cell, estimate, css if p < 0.05 else "plain"))
        if rows:
            label = f"Change of {words}, {name} against {reference}"
            zero = charts.Mark("", 0.0, "zero")
            drawn[figure] = alone(charts.whiskers(label, rows, wording.points, marks=[zero]))
    return drawn


def alone(drawn: Markup) -> str:
    """With the reports' style sheet, its ground (a page may be dark where the system is light), and the namespace that
    files need."""
    style = asset("charts.css") + "svg { background: var(--surface); font-family: system-ui, sans-serif; }"
    text = str(drawn)
    start = text.index(">") + 1
    head = text[:start].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}<style>{style}</style>{text[start:]}\n"
