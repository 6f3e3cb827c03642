"""Where an update regresses: the items of each value of a column, corrected for the number of slices."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.analyse import COUNT_NAMES, AnalysisOptions, outcomes, share, verdict
from muscle_hf.compare.document import Slice
from muscle_hf.compare.join import Joined
from muscle_hf.errors import MuscleError
from muscle_hf.metrics.intervals import bootstrap, effective_items, paired_difference_counts
from muscle_hf.metrics.significance import cluster_sign_test, holm, mcnemar_counts
from muscle_hf.words import did_you_mean

# A column that nobody asked for is a category if it has this many values, each on this many items on average.
_CATEGORIES = range(2, 51)
_ITEMS_PER_VALUE = 10
# A column of numbers with more values than this is cut into quarters of the items.
_MAX_NUMBERS = 20
_MAX_SLICES = 1000


def slice_columns(joined: Joined, wanted: Sequence[str] | None) -> dict[str, tuple[NDArray[np.int32], list[str]]]:
    """The columns to slice by: codes of the items and what they stand for.

    Args:
        joined: The items.
        wanted: Names of columns; None for all that look like categories.

    Raises:
        MuscleError: A wanted column does not exist, or has too many values to say anything.
    """
    if wanted is None:
        wanted = [
            name
            for name, (_, values) in joined.columns.items()
            if len(values) in _CATEGORIES and len(joined.ids) >= _ITEMS_PER_VALUE * len(values)
        ]
    return {name: _labelled(name, *_column(joined, name)) for name in wanted}


def _column(joined: Joined, name: str) -> tuple[NDArray[np.int32], list[Any]]:
    if name not in joined.columns:
        hint = did_you_mean(name, joined.columns)
        raise MuscleError(f"task {joined.task!r} has no column {name!r} to slice by; {hint}")
    return joined.columns[name]


def _labelled(name: str, codes: NDArray[np.int32], values: list[Any]) -> tuple[NDArray[np.int32], list[str]]:
    if len(values) > _MAX_NUMBERS and (numbers := _numbers(values)) is not None:
        return _quarters(codes, numbers)
    if len(values) > _MAX_SLICES:
        raise MuscleError(f"the column {name!r} has {len(values)} different values, too many for slices of items")
    return codes, [str(value) for value in values]


def _numbers(values: list[Any]) -> NDArray[np.float64] | None:
    """The values as numbers, nan for missing ones, if all are; in CSV files numbers are strings."""
    if any(isinstance(value, bool) for value in values):
        return None
    try:
        return np.array([math.nan if value in (None, "") else float(value) for value in values])
    except (TypeError, ValueError):
        return None


def _quarters(codes: NDArray[np.int32], values: NDArray[np.float64]) -> tuple[NDArray[np.int32], list[str]]:
    each = np.where(codes >= 0, values[codes], math.nan)
    edges = np.unique(np.nanquantile(each, [0.25, 0.5, 0.75]))
    bins = np.where(np.isnan(each), -1, np.searchsorted(edges, each, side="left")).astype(np.int32)
    names = [f"<= {edges[0]:g}", *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))]
    return bins, [*names, f"> {edges[-1]:g}"]


def find_slices(joined: Joined, label: str, options: AnalysisOptions) -> list[Slice]:
    """The slices of all columns for one updated model, surest regression first.

    Slices that got worse come before the others. Among them decides the upper end of the interval of the change: a
    slice comes first if its regression is large even when luck is taken off, not if it is merely small and unlucky.
    """
    codes = outcomes(joined, label, options.epsilon)
    kinds = len(COUNT_NAMES[joined.kind])
    regressed = codes == kinds - 1
    found: list[Slice] = []
    for column, (places, names) in slice_columns(joined, options.slices).items():
        known = places >= 0
        joint = places[known].astype(np.int64) * kinds + codes[known]
        table = np.bincount(joint, minlength=len(names) * kinds).reshape(len(names), kinds)
        for value, counts in enumerate(table):
            if counts.sum():
                chosen = places == value
                found.append(_slice(joined, label, options, column, names[value], counts.tolist(), chosen, regressed))
    adjusted = holm([entry.p_value for entry in found]).tolist() if found else []
    result = [_corrected(entry, p, options.level) for entry, p in zip(found, adjusted, strict=True)]
    return sorted(result, key=lambda entry: (entry.change.value >= 0, entry.change.high))


def _slice(
    joined: Joined,
    label: str,
    options: AnalysisOptions,
    column: str,
    value: str,
    counts: list[int],
    chosen: NDArray[np.bool_],
    regressed: NDArray[np.bool_],
) -> Slice:
    items, level = sum(counts), options.level
    sources = None if options.cluster is None else joined.columns[options.cluster][0]
    clusters = None if sources is None else sources[chosen]
    change_of_items = joined.values[label][chosen] - joined.values[joined.labels[0]][chosen]
    if joined.kind == "correct":
        _, won, _, lost = counts
        effective = None if clusters is None else effective_items(change_of_items, clusters)
        change = paired_difference_counts(lost, won, items, level=level, effective_total=effective)
        p_value = mcnemar_counts(lost, won).p_value
    else:
        change = bootstrap(
            lambda total, n: total / n,
            change_of_items,
            np.ones(items),
            level=level,
            clusters=clusters,
            seed=options.seed,
        )
        p_value = math.nan
    if math.isnan(p_value) or clusters is not None:
        p_value = cluster_sign_test(change_of_items, clusters, seed=options.seed)
    return Slice(
        column=column,
        value=value,
        items=items,
        counts=dict(zip(COUNT_NAMES[joined.kind], counts, strict=True)),
        nfr=share(regressed, chosen, clusters=sources, level=level),
        change=change,
        p_value=p_value,
        p_adjusted=p_value,
        verdict="no difference shown",
    )


def _corrected(entry: Slice, p_adjusted: float, level: float) -> Slice:
    return dataclasses.replace(entry, p_adjusted=p_adjusted, verdict=verdict(entry.change.value, p_adjusted, level))
