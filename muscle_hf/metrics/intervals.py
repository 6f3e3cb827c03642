"""Intervals of rates, differences and other functions of sums over items.

Rates have Wilson intervals; differences of paired accuracies have Bonett and Price's; everything else that is a
function of sums over items (ratios, changes of rates, smooth means) has a bootstrap over items, or whole clusters.

Everywhere ``level`` is the confidence level, ``side`` asks for both ends (``two-sided``) or for the ``upper`` or the
``lower`` bound at that level alone, ``clusters`` is the source of each item where several share one, and ``seed`` is
that of the resampling.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.errors import MuscleError
from muscle_hf.metrics.flips import all_correct, fell

Side = Literal["two-sided", "upper", "lower"]

# With more different items than this the bootstrap runs over this many random groups of them. Sums over items are sums
# over groups, so that the interval is the same but for the luck of the draw, and a million take as long as a thousand.
_MAX_BOOTSTRAP_ROWS = 1_000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Args:
        value: Point estimate; nan where it is undefined.
        low: Lower end of the interval (-inf for an upper bound).
        high: Upper end of the interval (inf for a lower bound).
        level: Confidence level, for example 0.95.
        method: How the interval was found: ``wilson``, ``bca``, ``percentile``, ``bonett-price``, ...; ``undefined``.
        count: For rates: the number of items that have the property.
        total: For rates: the number of items that could have it.
    """

    value: float
    low: float
    high: float
    level: float = 0.95
    method: str = ""
    count: int | None = None
    total: int | None = None


def _check(level: float, side: Side) -> None:
    if not 0 < level < 1:
        raise MuscleError(f"level must lie between 0 and 1, for example 0.95; got {level}")
    if side not in ("two-sided", "upper", "lower"):
        raise MuscleError(f"side must be 'two-sided', 'upper' or 'lower', got {side!r}")


def _one_sided(low: float, high: float, side: Side, least: float, most: float) -> tuple[float, float]:
    return (least if side == "upper" else low, most if side == "lower" else high)


def _z(level: float, side: Side) -> float:
    from scipy.special import ndtri

    return float(ndtri((1 + level) / 2 if side == "two-sided" else level))


def wilson_interval(
    count: int, total: int, *, level: float = 0.95, side: Side = "two-sided", effective_total: float | None = None
) -> Estimate:
    """Wilson's score interval of a share.

    Args:
        count: Items with the property.
        total: Items in all; 0 gives nan.
        level: Confidence level.
        side: Which ends.
        effective_total: Number of independent items that the ``total`` are worth, where items come in clusters.
    """
    _check(level, side)
    if not 0 <= count <= total:
        raise MuscleError(f"count must lie between 0 and total, got {count} of {total}")
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "wilson", 0, 0)
    share = count / total
    low, high = _wilson_ends(share, total if effective_total is None else effective_total, level, side)
    # Rounding must not put an end beyond the point where they coincide.
    low, high = (0.0 if count == 0 else low), (1.0 if count == total else high)
    return Estimate(share, low, high, level, "wilson", int(count), int(total))


def _wilson_ends(share: float, total: float, level: float, side: Side) -> tuple[float, float]:
    z = _z(level, side)
    weight = z * z / total
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * (share * (1 - share) + weight / 4)) / (1 + weight)
    return _one_sided(middle - half, middle + half, side, 0.0, 1.0)


def effective_items(values: ArrayLike, clusters: ArrayLike | None) -> float | None:
    """How many independent items a clustered sample is worth for estimating a share or mean (Kish's design effect).

    Args:
        values: What the mean is of: 1 or 0 for a share, -1, 0 or 1 for a change. Shape ``(items,)``.
        clusters: Source of each item; None gives None.

    Returns:
        Never more than the number of items; the number of clusters where all values are equal, so that the variance
        between clusters cannot be seen.
    """
    if clusters is None:
        return None
    numbers = np.asarray(values, dtype=np.float64)
    sums, sizes = cluster_sums(np.column_stack([numbers, np.ones(len(numbers))]), clusters).T
    n, k = len(numbers), len(sizes)
    if n == 0:
        return 0.0
    mean, plain = numbers.mean(), numbers.var() / n
    if plain == 0 or k < 2:
        return float(k)
    clustered = k / (k - 1) * float(((sums - mean * sizes) ** 2).sum()) / n**2
    return n / max(1.0, clustered / plain)


def cluster_sums(columns: NDArray[np.float64], clusters: ArrayLike) -> NDArray[np.float64]:
    """Column sums within each cluster; shape ``(clusters, columns)``."""
    labels = np.asarray(clusters)
    if len(labels) != len(columns):
        raise MuscleError(f"unequal lengths: {len(columns)} items, {len(labels)} cluster labels")
    _, codes = np.unique(labels, return_inverse=True)
    return np.column_stack([np.bincount(codes, weights=column).astype(np.float64) for column in columns.T])


def bootstrap(
    statistic: Callable[..., Any],
    *columns: ArrayLike,
    level: float = 0.95,
    side: Side = "two-sided",
    clusters: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Interval of a function of column sums, by resampling items (or whole clusters) with replacement.

    Most rates and means are functions of sums over items: NFR is ``sum(flip) / sum(1)``, m_r is
    ``sum(-D[D<0]) / sum(D<0)``, the relative NFR is a ratio of products of sums.

    Args:
        statistic: Function of one sum per column, given as arrays of any shape; computes elementwise.
        *columns: Numbers of each item, shape ``(items,)`` each.
        level: Confidence level.
        side: Which ends.
        clusters: Source of each item; whole sources are resampled.
        weights: How many items each row stands for, where equal ones are counted beforehand; not with ``clusters``.
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Returns:
        The statistic with its BCa interval; the percentile interval where BCa is undefined (constant data, a
        statistic that one item decides). nan if the statistic is undefined on the data; without ends if there are
        fewer than two items (or clusters) to tell a spread from. The order of the items does not matter.

    Examples:
        >>> flips = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
        >>> e = bootstrap(lambda flip, one: flip / one, flips, [1] * 10)
        >>> e.value, 0 < e.low < e.value < e.high < 1
        (0.3, True)
    """
    _check(level, side)
    if weights is not None and clusters is not None:
        raise MuscleError("weights stand for equal items, which clusters tell apart; give one of the two")
    table = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    if clusters is not None:
        table = cluster_sums(table, clusters)
    counts = np.ones(len(table)) if weights is None else np.asarray(weights, dtype=np.float64)
    order = np.lexsort(table.T)
    table, counts = table[order][counts[order] > 0], counts[order][counts[order] > 0]
    n = int(counts.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(counts @ table))) if n else math.nan
        if not math.isfinite(value):
            return Estimate(math.nan, math.nan, math.nan, level, "undefined")
        if n < 2:
            return Estimate(value, -math.inf, math.inf, level, "undefined")
        starts = np.flatnonzero(np.any(table != np.roll(table, 1, axis=0), axis=1))
        if 0 < len(starts) <= _MAX_BOOTSTRAP_ROWS:  # equal rows are one that counts as often
            table, counts = table[starts], np.add.reduceat(counts, starts)
        low, high, method = _bootstrap_ends(statistic, table, counts, level, side, resamples, seed)
    low, high = _one_sided(low, high, side, -math.inf, math.inf)
    return Estimate(value, low, high, level, method)


def _bootstrap_ends(
    statistic: Callable[..., Any],
    table: NDArray[np.float64],
    counts: NDArray[np.float64],
    level: float,
    side: Side,
    resamples: int,
    seed: int,
) -> tuple[float, float, str]:
    """BCa ends (Efron 1987) of rows that count several times; percentiles where these are undefined."""
    from scipy.special import ndtr, ndtri

    rng = np.random.default_rng(seed)
    if len(table) > _MAX_BOOTSTRAP_ROWS:
        rows = np.repeat(table, counts.astype(np.int64), axis=0)
        table = cluster_sums(rows, rng.permutation(len(rows)) % _MAX_BOOTSTRAP_ROWS)
        counts = np.ones(len(table))
    n, sums = counts.sum(), counts @ table
    drawn = statistic(*(rng.multinomial(int(n), counts / n, size=resamples) @ table).T)
    value, without = statistic(*sums), statistic(*(sums - table).T)
    tails = np.array([(1 - level) / 2 if side == "two-sided" else 1 - level])
    tails = np.concatenate([tails, 1 - tails])
    pull = counts @ without / n - without
    skew = counts @ pull**3 / (6 * (counts @ pull**2) ** 1.5)
    bias = ndtri(np.mean(drawn < value) / 2 + np.mean(drawn <= value) / 2)
    moved = bias + ndtri(tails)
    moved = ndtr(bias + moved / (1 - skew * moved))
    ends = np.quantile(drawn, moved) if np.isfinite(moved).all() else np.full(2, np.nan)
    if np.isfinite(ends).all():
        return float(ends[0]), float(ends[1]), "bca"
    drawn = drawn[np.isfinite(drawn)]
    low, high = np.quantile(drawn, tails) if len(drawn) else (math.nan, math.nan)
    return float(low), float(high), "percentile"


def nfr_change(
    old_correct: ArrayLike,
    new_correct: ArrayLike,
    compat_correct: ArrayLike,
    *,
    level: float = 0.95,
    side: Side = "two-sided",
    clusters: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Delta NFR_c = NFR_c - NFR with a paired bootstrap interval over items; negative is better.

    Where the two flip the same items, which resampling cannot tell from certainty, the interval is Bonett and Price's.
    Takes whether each model is right, boolean, shape ``(items,)``.
    """
    old, new, compat = all_correct(old_correct=old_correct, new_correct=new_correct, compat_correct=compat_correct)
    change = fell(old, compat).astype(np.int8) - fell(old, new)
    return mean_change(change, level=level, side=side, clusters=clusters, seed=seed)


def mean_change(
    changes: ArrayLike,
    *,
    level: float = 0.95,
    side: Side = "two-sided",
    clusters: ArrayLike | None = None,
    seed: int = 0,
) -> Estimate:
    """Mean of paired changes of shape ``(items,)``, by the bootstrap.

    Where changes are of flips (-1, 0, 1) and there is none, resampling cannot tell that from certainty, and the
    interval is Bonett and Price's.
    """
    change, settings = np.asarray(changes), {"level": level, "side": side}
    if change.dtype.kind in "ib":
        if not change.any():
            return _bonett_price(0, 0, len(change), level, side, effective_items(change, clusters))
        if clusters is None:
            counted = np.bincount(change + 1, minlength=3)
            return bootstrap(operator.truediv, (-1, 0, 1), (1, 1, 1), weights=counted, seed=seed, **settings)
    return bootstrap(operator.truediv, change, np.ones(len(change)), clusters=clusters, seed=seed, **settings)


def paired_difference(
    first_correct: ArrayLike,
    second_correct: ArrayLike,
    *,
    level: float = 0.95,
    side: Side = "two-sided",
    effective_total: float | None = None,
) -> Estimate:
    """Accuracy of the second model minus that of the first on the same items, with Bonett and Price's interval.

    Unlike the bootstrap it does not collapse to a point where no item flips (Bonett, Price 2012: one imaginary flip is
    added each way). scipy has no interval for paired shares. Takes whether each model is right, boolean, shape
    ``(items,)``; ``effective_total`` is the number of independent items, where items come in clusters.
    """
    first, second = all_correct(first_correct=first_correct, second_correct=second_correct)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    return _bonett_price(lost, won, len(first), level, side, effective_total)


def _bonett_price(lost: int, won: int, n: int, level: float, side: Side, effective_total: float | None) -> Estimate:
    """:func:`paired_difference` from the numbers of items that turned wrong, that turned right, and of all items."""
    _check(level, side)
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "bonett-price")
    shrink = (effective_total or n) / n
    size = shrink * n + 2
    p_lost, p_won = (shrink * lost + 1) / size, (shrink * won + 1) / size
    half = _z(level, side) * math.sqrt((p_won + p_lost - (p_won - p_lost) ** 2) / size)
    value = (won - lost) / n
    ends = (max(-1.0, min(value, p_won - p_lost - half)), min(1.0, max(value, p_won - p_lost + half)))
    low, high = _one_sided(*ends, side, -1.0, 1.0)
    return Estimate(value, low, high, level, "bonett-price")


def pooled_rate(
    counts: Sequence[int], totals: Sequence[int], *, level: float = 0.95, side: Side = "two-sided"
) -> Estimate:
    """A share over several tasks: the mean of the tasks' shares, in which every task counts the same.

    The interval is Wilson's on the effective number of items, which gives it the variance of the stratified mean and
    keeps it inside [0, 1].

    Args:
        counts: Items with the property in each task.
        totals: Items of each task; tasks without items are left out.
        level: Confidence level.
        side: Which ends.
    """
    _check(level, side)
    k, n = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    k, n = k[n > 0], n[n > 0]
    if len(n) == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "stratified wilson")
    share = float((k / n).mean())
    # Shares shrunk towards 1/2 by one item keep tasks without a single flip from counting as certain.
    p = (k + 0.5) / (n + 1)
    mean = float(p.mean())
    effective = mean * (1 - mean) / float((p * (1 - p) / n).sum() / len(n) ** 2)
    low, high = _wilson_ends(share, effective, level, side)
    return Estimate(share, low, high, level, "stratified wilson", int(k.sum()), int(n.sum()))


def mean_estimate(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, such as one a task, all weighing the same; nan ones are left out.

    The ends are those of the method of variance estimates recovery (Zou, Donner 2008, Statistics in Medicine 27): the
    distances of the estimates from their ends, which need not be symmetric, add up as standard errors do.
    """
    known = [estimate for estimate in estimates if not math.isnan(estimate.value)]
    if not known:
        return Estimate(math.nan, math.nan, math.nan)
    value = sum(estimate.value for estimate in known) / len(known)
    below, above = (
        math.sqrt(sum(distance**2 for distance in distances)) / len(known)
        for distances in ([e.value - e.low for e in known], [e.high - e.value for e in known])
    )
    return Estimate(value, value - below, value + above, known[0].level, "recovered variances")
