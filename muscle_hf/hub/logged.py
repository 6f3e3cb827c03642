"""Flips that were logged during training (``FlipMetricsCallback``), for cards of adapters without a comparison."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

# What the callback logs after its prefix: of the old model, the plain update (`_new`) and the model in training.
_KEY = re.compile(r"eval_(?P<prefix>.*?)(?P<rate>acc|score|nfr_mc|nfr|pfr)(?P<model>_old|_new)?")


@dataclass(frozen=True)
class LoggedFlips:
    """The last flip metrics of one evaluation during training.

    Args:
        name: What the callback or the evaluation set was called; empty for an only one.
        old: Rate -> value of the old model.
        new: Of the plain update.
        compat: Of the adapter.
    """

    name: str
    old: dict[str, float] = field(default_factory=dict)
    new: dict[str, float] = field(default_factory=dict)
    compat: dict[str, float] = field(default_factory=dict)


def logged_flips(metrics: Mapping[str, float | None]) -> list[LoggedFlips]:
    """Flip metrics among logged figures.

    Args:
        metrics: ``metrics`` of a provenance.
    """
    found: dict[str, LoggedFlips] = {}
    for key, value in metrics.items():
        match = _KEY.fullmatch(key)
        if match is None or not isinstance(value, (int, float)) or not math.isfinite(value):
            continue
        flips = found.setdefault(match["prefix"], LoggedFlips(match["prefix"].strip("_")))
        {"_old": flips.old, "_new": flips.new, None: flips.compat}[match["model"]][match["rate"]] = float(value)
    return [flips for flips in found.values() if "nfr" in flips.compat]
