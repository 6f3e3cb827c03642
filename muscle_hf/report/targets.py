"""What rows without labels could follow: a table for the terminal and a page with its pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report import charts, html
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup
from muscle_hf.report.text import one_line

if TYPE_CHECKING:
    from rich.table import Table

    from muscle_hf.compare.targets import Target, Targets

COLUMNS = ("target", "accuracy", "NFR", "accuracy against new", "NFR against new")
CAUTION = (
    "Figures are of the rule itself, which asks both models; a student comes close to it, not up to it. The target "
    "was chosen on these rows: measure the trained adapter on rows that took no part."
)
_CHANGES = ("change_of_accuracy", "change_of_nfr")
_NAMES = {"always_new": "new", "always_old": "old", "more_confident_sequence": "surer"}


def cells(targets: Targets) -> list[list[str]]:
    """The rows of the table, one a target."""
    return [
        [
            target.mask,
            w.percent(target.accuracy.value),
            w.percent(target.nfr.value),
            *(
                "" if target.mask == "always_new" else w.with_interval(getattr(target, name), w.points)
                for name in _CHANGES
            ),
        ]
        for target in targets.targets
    ]


def advice(targets: Targets) -> str:
    """What to do with the target that was chosen."""
    mask = targets.chosen.mask
    if mask == "always_new":
        return "No mixture is worth it here: the old model adds nothing on these rows."
    if mask == "always_old":
        return "The old model alone is as good on these rows: is this update worth shipping?"
    return f"Train with mask: {mask} and transfer_mask: {mask} (MuscleConfig, or training: in a recipe)."


def why(targets: Targets) -> str:
    """By which rule the target was chosen."""
    return f"{targets.chosen.mask}: the fewest negative flips among the targets about as accurate as the best"


def warnings(found: Sequence[Targets]) -> list[str]:
    """What a reader of all tasks must see, each sentence once."""
    return list(dict.fromkeys(text for targets in found for text in targets.warnings))


def terminal_table(targets: Targets) -> Table:
    """The targets of a task for a terminal, the chosen one in bold."""
    from muscle_hf.report.terminal import table

    caption = f"[low, high]: {w.level_name(targets.accuracy_old)} intervals, on the same rows. {CAUTION}"
    chosen = targets.targets.index(targets.chosen)
    return table(title(targets), COLUMNS, caption, cells(targets), chosen=chosen)


def title(targets: Targets) -> str:
    """Heading of a task."""
    level = w.percent(targets.accuracy_old.value)
    return f"{one_line(targets.task, 80)}: {w.count(targets.items)} rows, old model {level} right"


def page(found: Sequence[Targets]) -> str:
    """All tasks as one HTML file in the style of the reports; no script. Write it as UTF-8."""
    said = {"title": title, "why": why, "advice": advice, "cells": cells, "picture": picture}
    return html.page("targets.html", found=found, warnings=[CAUTION, *warnings(found)], columns=COLUMNS, **said)


def picture(targets: Targets) -> Markup:
    """Accuracy against negative flips of a task's targets."""
    return charts.trade_off(
        f"Accuracy against negative flips on {one_line(targets.task, 60)}",
        [_point(target, target is targets.chosen) for target in targets.targets],
        ("old", replace(targets.accuracy_old, low=math.nan, high=math.nan)),
        ("negative flips", "accuracy"),
        (w.percent, w.percent),
    )


def _point(target: Target, leads: bool) -> charts.Point:
    name = _NAMES.get(target.mask, target.mask.removeprefix("mean(").removesuffix(")"))
    flips, accuracy = (Estimate(rate.value, math.nan, math.nan) for rate in (target.nfr, target.accuracy))
    return charts.Point(name, flips, accuracy, leads)
