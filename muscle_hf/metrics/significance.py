"""Paired tests of two models on the same items, and corrections for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.metrics.flips import all_correct
from muscle_hf.metrics.intervals import cluster_sums

# Above this many signs the sum of random signs is normal for all purposes, and permuting them would take seconds.
_MAX_SIGNS = 1_000


@dataclass(frozen=True)
class TestResult:
    """An exact McNemar test, two-sided.

    Args:
        p_value: Chance of a difference at least this large if there is none; 1.0 where no pair differs.
        first_only: Pairs in which only the first is right.
        second_only: Pairs in which only the second is right.
    """

    p_value: float
    first_only: int
    second_only: int

    __test__ = False  # not a test case, though pytest would collect the name


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> TestResult:
    """Exact McNemar test: are two models right equally often? Boolean, shape ``(items,)``, the same items."""
    return stratified_mcnemar([(first_correct, second_correct)])


def stratified_mcnemar(strata: Sequence[tuple[ArrayLike, ArrayLike]]) -> TestResult:
    """McNemar's test over several tasks at once: each flip is a coin toss in its own task, so the flips add up.

    ``strata`` are ``(first_correct, second_correct)`` of each task, boolean, shape ``(items,)``.
    """
    from scipy.special import bdtr

    pairs = [all_correct(first_correct=first, second_correct=second) for first, second in strata]
    first_only = sum(int((first & ~second).sum()) for first, second in pairs)
    second_only = sum(int((~first & second).sum()) for first, second in pairs)
    fewer, flips = min(first_only, second_only), first_only + second_only
    return TestResult(min(1.0, 2 * float(bdtr(fewer, flips, 0.5))) if flips else 1.0, first_only, second_only)


def compat_test(old_correct: ArrayLike, new_correct: ArrayLike, compat_correct: ArrayLike) -> TestResult:
    """Does the compatibility model keep more of v1's right answers than v2? McNemar on the items that v1 gets right.

    Takes whether each model is right, boolean, shape ``(items,)``.
    """
    old, new, compat = all_correct(old_correct=old_correct, new_correct=new_correct, compat_correct=compat_correct)
    return mcnemar(new[old], compat[old])


def cluster_sign_test(
    changes: ArrayLike, clusters: ArrayLike | None = None, *, resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value of paired changes whose sign is a coin toss, one toss for each cluster (or item).

    Args:
        changes: Change of each item: -1, 0, 1 for right / wrong, or differences of scores. Shape ``(items,)``.
        clusters: Source of each item; items of one source keep a common sign. Each item its own source by default.
        resamples: Random sign assignments, or all of them if they are fewer; none where signs are so many that their
            sum is normal.
        seed: Of the random signs.
    """
    from scipy.special import ndtr

    sums = np.asarray(changes, dtype=np.float64)
    if clusters is not None:
        sums = cluster_sums(sums[:, None], clusters)[:, 0]
    sums = sums[sums != 0]
    if len(sums) < 2:
        return 1.0  # a single toss lands either way
    if len(sums) > _MAX_SIGNS:
        return float(2 * ndtr(-abs(sums.sum()) / math.sqrt(float((sums**2).sum()))))
    if every := 2 ** len(sums) <= resamples:
        signs = 1 - 2 * (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1)
    else:
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), (resamples, len(sums)))
    # A sum that only rounding tells from the data is as extreme as it.
    extreme = np.abs(signs @ sums) >= abs(sums.sum()) - 1e-12 * np.abs(sums).sum()
    return float(extreme.mean() if every else (1 + extreme.sum()) / (1 + resamples))


def run_permutation_test(
    first_runs: NDArray[np.float64], second_runs: NDArray[np.float64], *, resamples: int = 1999, seed: int = 0
) -> tuple[float, float]:
    """Do the runs of two models differ, where each item was answered several times?

    Without a difference, which of an item's runs belong to which model is a draw without replacement. Holds for right
    or wrong answers; items with one run each are signs to toss.

    Args:
        first_runs: 1, 0 or nan (no such run), shape ``(items, runs)``.
        second_runs: The same items; there may be more or fewer runs.
        resamples: Random draws.
        seed: Of the draws.

    Returns:
        Two-sided p-value of the difference of mean rates, and the mean of ``max(0, first - second)`` over items that
        chance alone makes.
    """
    from scipy.special import ndtr

    rng = np.random.default_rng(seed)
    n = (~np.isnan(first_runs)).sum(1), (~np.isnan(second_runs)).sum(1)
    right = np.nansum(first_runs, 1), np.nansum(second_runs, 1)
    total, size = (right[0] + right[1]).astype(np.int64), n[0] + n[1]
    observed = float(np.mean(right[0] / n[0] - right[1] / n[1]))
    draws = max(20, min(resamples, 20_000_000 // max(1, len(total))))
    means, lost = np.empty(draws), 0.0
    for place in range(draws):
        drawn = rng.hypergeometric(total, size - total, n[0])
        change = drawn / n[0] - (total - drawn) / n[1]
        means[place] = change.mean()
        lost += float(np.maximum(change, 0.0).mean()) / draws
    if draws < resamples:  # so many items that their mean is normal
        deviation = float(means.std())
        return (float(2 * ndtr(-abs(observed) / deviation)) if deviation else 1.0), lost
    # A draw that only rounding tells from the data is as extreme as it.
    return (1 + int((np.abs(means) >= abs(observed) - 1e-12).sum())) / (draws + 1), lost


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's correction: p-values that hold together over several tasks or slices; nan stays nan and does not count.

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # nan sorts last
    adjusted = np.full(len(values), np.nan)
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return adjusted
