"""How models of a cell compare: means over seeds, and changes that are paired over seeds and items.

Intervals are those of a bootstrap that resamples items (with all their seeds), p-values of a sign test that flips
whole items.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
from answers import FIGURES, V1, Answers
from scipy.stats import ttest_1samp

from muscle_hf.metrics import Estimate, bootstrap, cluster_sign_test, holm

# Of all cells: plain cross-entropy on v2's adapter.
CONTROL = "ce"

Seeds = tuple[Answers, ...]


def with_model(seeds: Seeds, *names: str) -> Seeds:
    """The seeds that have all of some models."""
    return tuple(seed for seed in seeds if seed.quality.keys() >= set(names))


def differences(seeds: Seeds, name: str, reference: str, figure: str) -> dict[Answers, np.ndarray]:
    """A model's figure minus a reference's, ``nfr`` or ``acc_new``, of each item of each seed that has both."""
    found = {}
    for seed in with_model(seeds, name, reference):
        mine, theirs = (
            seed.worse(model).astype(float) if figure == "nfr" else seed.quality[model] for model in (name, reference)
        )
        found[seed] = mine - theirs
    return found


@cache
def change(seeds: Seeds, name: str, reference: str, figure: str) -> tuple[Estimate, float]:
    """The mean of :func:`differences`, and the p-value of no change over items."""
    found = differences(seeds, name, reference, figure)
    values = np.concatenate(list(found.values()))
    # The embedded world's items are others in each seed.
    items = np.concatenate([[f"{seed.items} {index}" for index in range(len(of))] for seed, of in found.items()])
    estimate = bootstrap(lambda total, count: total / count, values, np.ones(len(values)), clusters=items)
    return estimate, cluster_sign_test(values, items)


def by_seed(seeds: Seeds, name: str, reference: str, figure: str) -> np.ndarray:
    """The mean of :func:`differences` of each seed that has both models."""
    return np.array([of.mean() for of in differences(seeds, name, reference, figure).values()])


def agreeing(seeds: Seeds, name: str, reference: str) -> tuple[int, int]:
    """In how many seeds NFR changes to the same side as in their mean, and how many have both models."""
    found = by_seed(seeds, name, reference, "nfr")
    return int(np.sum(found * found.sum() > 0)), len(found)


def over_seeds(seeds: Seeds, name: str, reference: str, figure: str) -> tuple[float, float]:
    """Standard deviation over seeds of a change, and the p-value of a paired t-test over them: what it would be with
    other seeds, where a bootstrap over items says what it would be with other items."""
    found = by_seed(seeds, name, reference, figure)
    if len(found) < 2 or not found.std():
        return 0.0, math.nan
    return float(found.std(ddof=1)), float(ttest_1samp(found, 0).pvalue)


def changes(seeds: Seeds, names: Sequence[str], reference: str, figure: str) -> dict[str, tuple[Estimate, float]]:
    """Of several models, with p-values that are corrected together."""
    return _corrected({name: change(seeds, name, reference, figure) for name in names})


def over_cells(
    cells: Mapping[str, Seeds], name: str, reference: str, figure: str
) -> dict[str, tuple[Estimate, float]]:
    """Of a model in each cell that has it and the reference, with p-values that are corrected together."""
    having = {cell: seeds for cell, seeds in cells.items() if with_model(seeds, name, reference)}
    return _corrected({cell: change(seeds, name, reference, figure) for cell, seeds in having.items()})


def _corrected(found: Mapping[str, tuple[Estimate, float]]) -> dict[str, tuple[Estimate, float]]:
    corrected = holm([p for _, p in found.values()]) if found else []
    return {key: (estimate, p) for (key, (estimate, _)), p in zip(found.items(), corrected, strict=True)}


def flips_between(seeds: Seeds, name: str, *, same: bool) -> float:
    """How often a model is wrong where v1 is right, as the mean over pairs of v1 and model that are of the same seed,
    or of two seeds; nan where no two seeds have the same items."""
    pairs = [
        (one, other)
        for one in seeds
        for other in with_model(seeds, name)
        if (one is other) is same and one.items == other.items
    ]
    found = [np.mean(other.quality[name] < one.quality[V1]) for one, other in pairs]
    return float(np.mean(found)) if found else math.nan


def means(seeds: Seeds, name: str) -> dict[str, float]:
    """The figures of a model, each the mean over the seeds that have it."""
    found = [seed.figures(name) for seed in with_model(seeds, name)]
    return {key: float(np.mean([one.get(key, math.nan) for one in found])) for key in ("acc_old", *FIGURES)}
