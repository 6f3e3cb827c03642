"""What the page about the study shows: six ways of updating, each by its flips and its accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from answers import BOTH, V2
from compared import Seeds, means, with_model

# Tasks with choices, one size of base, adapters well above chance.
PAGE_CELLS = ("level-trec", "gap-trec", "rows-trec", "demo-routing", "level-sst2", "level-ag_news")
# Readable name -> its label in the figure, and its name in the records.
PAGE_METHODS = {
    "v2 as it is": ("v2", V2),
    "plain training for longer": ("plain training", "ce_longer"),
    "the paper's objective": ("paper", "muscle"),
    "focal distillation": ("focal", "focal_ce"),
    "consensus after plain training": ("consensus", "long_transfer_mean"),
    "both models at inference (bound)": ("both", BOTH),
}


@dataclass(frozen=True)
class PageRow:
    """A way of updating: shares in [0, 1], an entry for each cell, and the NFR of v2 there.

    Args:
        name: What the page calls it.
        label: What the figure calls it.
        nfr: Share of items that v1 has right and this model wrong.
        accuracy: Share of items that this model has right.
        nfr_of_v2: NFR of v2 on the same seeds.
    """

    name: str
    label: str
    nfr: np.ndarray
    accuracy: np.ndarray
    nfr_of_v2: np.ndarray


def page_rows(cells: Mapping[str, Seeds]) -> list[PageRow]:
    """The rows whose model every cell has."""
    rows = []
    for name, (label, model) in PAGE_METHODS.items():
        having = [with_model(seeds, model) for seeds in cells.values()]
        if not having or not all(having):
            continue
        found = [means(seeds, model) for seeds in having]
        rows.append(
            PageRow(
                name,
                label,
                *(np.array([one[figure] for one in found]) for figure in ("nfr", "acc_new")),
                np.array([means(seeds, V2)["nfr"] for seeds in having]),
            )
        )
    return rows


def page_table(rows: list[PageRow]) -> list[str]:
    """Means over the cells in percent, and how far NFR lies below v2's from cell to cell."""
    lines = ["| | negative flips | against v2, from cell to cell | accuracy |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        change = 100 * (row.nfr / row.nfr_of_v2 - 1)
        spread = "" if row is rows[0] else f"{_percent(change.min())} to {_percent(change.max())}"
        lines.append(f"| {row.name} | {100 * row.nfr.mean():.1f} % | {spread} | {100 * row.accuracy.mean():.1f} % |")
    return lines


def _percent(value: float) -> str:
    return f"{value:+.0f} %" if round(value) else "0 %"


def page_names(plan: Mapping[str, Any]) -> list[str]:
    """The readable names, and what is behind them in the records."""
    lines = ["| name | is | in the records |", "| --- | --- | --- |"]
    for name, row in plan["names"].items():
        known = ", ".join(f"`{method}`" for method in row["methods"] if method in plan["methods"])
        lines.append(f"| {name} | {row['is']} | {known} |")
    return lines
