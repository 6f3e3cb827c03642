"""Where an update regresses: the items of each value of a column, corrected for the number of slices."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.analyse import AnalysisOptions, numbers_of, update_of, verdict
from muscle_hf.compare.document import Slice
from muscle_hf.compare.join import Joined
from muscle_hf.errors import MuscleError
from muscle_hf.metrics.significance import holm
from muscle_hf.words import did_you_mean

# A column that nobody asked for is a category if it has this many values, each on this many items on average.
_CATEGORIES = range(2, 51)
_ITEMS_PER_VALUE = 10
# A column of numbers with more values than this is cut into quarters of the items.
_MAX_NUMBERS = 20
_MAX_SLICES = 1000


def slice_columns(joined: Joined, wanted: Sequence[str] | None) -> dict[str, tuple[NDArray[np.int32], list[str]]]:
    """Codes of the items and what they stand for, of the ``wanted`` columns, None for all that look like categories;
    one that does not exist, or has too many values to say anything, is refused."""
    if wanted is None:
        wanted = [
            name
            for name, (codes, _) in joined.columns.items()
            if (found := len(np.unique(codes[codes >= 0]))) in _CATEGORIES
            and len(joined.ids) >= _ITEMS_PER_VALUE * found
        ]
    if lacking := next((name for name in wanted if name not in joined.columns), None):
        hint = did_you_mean(lacking, joined.columns)
        raise MuscleError(f"task {joined.task!r} has no column {lacking!r} to slice by; {hint}")
    return {name: _labelled(name, *joined.columns[name]) for name in wanted}


def _labelled(name: str, codes: NDArray[np.int32], values: list[Any]) -> tuple[NDArray[np.int32], list[str]]:
    if len(values) > _MAX_NUMBERS:
        numbers = numbers_of(values)
        known = [value for value, number in zip(values, numbers, strict=False) if not math.isnan(number)]
        if len(known) == len(values) - values.count("") and bool not in map(type, known):
            return _quarters(codes, numbers)
    if len(values) > _MAX_SLICES:
        raise MuscleError(f"the column {name!r} has {len(values)} different values, too many for slices of items")
    return codes, [str(value) for value in values]


def _quarters(codes: NDArray[np.int32], values: NDArray[np.float64]) -> tuple[NDArray[np.int32], list[str]]:
    each = values[codes]
    edges = np.unique(np.nanquantile(each, [0.25, 0.5, 0.75]))
    bins = np.where(np.isnan(each), -1, np.searchsorted(edges, each, side="left")).astype(np.int32)
    names = [f"<= {edges[0]:g}", *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))]
    return bins, [*names, f"> {edges[-1]:g}"]


def find_slices(joined: Joined, label: str, options: AnalysisOptions) -> list[Slice]:
    """The slices of all columns for one updated model, surest regression first.

    Slices that got worse come before the others. Among them decides the upper end of the interval of the change: a
    slice comes first if its regression is large even when luck is taken off, not if it is merely small and unlucky.
    """
    whole = update_of(joined, label, options)
    found = [
        (column, names[value], whole.only(items))
        for column, (places, names) in slice_columns(joined, options.slices).items()
        for value, items in enumerate(_grouped(places, len(names)))
        if len(items)
    ]
    p_values = [update.p_value for _, _, update in found]
    slices = []
    for (column, value, update), p, adjusted in zip(found, p_values, holm(p_values).tolist(), strict=True):
        change, items = update.change, len(update.before)
        judged = verdict(change.value, adjusted, options.level)
        slices.append(Slice(column, value, items, update.counts, update.nfr, change, p, adjusted, judged))
    return sorted(slices, key=lambda entry: (entry.change.value >= 0, entry.change.high))


def _grouped(codes: NDArray[np.int32], values: int) -> list[NDArray[np.int64]]:
    """Numbers of the items of each value, in the order of the items."""
    order = np.argsort(codes, kind="stable")
    edges = np.searchsorted(codes[order], np.arange(values + 1))
    return [order[start:end] for start, end in itertools.pairwise(edges)]
