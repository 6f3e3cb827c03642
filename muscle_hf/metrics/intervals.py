"""Intervals of rates, differences and other functions of sums over items.

Rates have Wilson intervals; differences of paired accuracies have Bonett and Price's; everything else that is a
function of sums over items (ratios, changes of rates, smooth means) has an item bootstrap, by whole clusters where
items share a source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.errors import MuscleError
from muscle_hf.metrics.flips import as_correct, check_lengths

Side = Literal["two-sided", "upper", "lower"]

# Above this many distinct rows, resampling costs more than it tells: the jackknife's normal interval is as good.
_MAX_BOOTSTRAP_ROWS = 5_000


@dataclass(frozen=True)
class Estimate:
    """A number with its interval.

    Args:
        value: Point estimate; nan where it is undefined.
        low: Lower end of the interval (-inf for an upper bound).
        high: Upper end of the interval (inf for a lower bound).
        level: Confidence level, for example 0.95.
        method: How the interval was found: ``wilson``, ``bca``, ``percentile``, ``jackknife``, ``bonett-price``, ...
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

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise MuscleError(f"level must lie between 0 and 1, for example 0.95; got {level}")


def _z(level: float, side: Side) -> float:
    from scipy.special import ndtri

    _check_level(level)
    if side not in ("two-sided", "upper", "lower"):
        raise MuscleError(f"side must be 'two-sided', 'upper' or 'lower', got {side!r}")
    return float(ndtri((1 + level) / 2 if side == "two-sided" else level))


def _one_sided(
    low: float, high: float, side: Side, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float]:
    return (bounds[0] if side == "upper" else low, bounds[1] if side == "lower" else high)


def wilson_interval(
    count: int, total: int, *, level: float = 0.95, side: Side = "two-sided", effective_total: float | None = None
) -> Estimate:
    """Wilson's score interval of a share.

    Args:
        count: Items with the property.
        total: Items in all; 0 gives nan.
        level: Confidence level.
        side: ``two-sided``, or only the ``upper`` or the ``lower`` bound at this level.
        effective_total: Number of independent items that the ``total`` are worth, where items come in clusters.
    """
    z = _z(level, side)
    if not 0 <= count <= total:
        raise MuscleError(f"count must lie between 0 and total, got {count} of {total}")
    if total == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "wilson", 0, 0)
    share, n = count / total, float(total if effective_total is None else effective_total)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if count == 0 else max(0.0, centre - half)
    high = 1.0 if count == total else min(1.0, centre + half)
    low, high = _one_sided(low, high, side, (0.0, 1.0))
    return Estimate(share, low, high, level, "wilson", int(count), int(total))


def effective_items(values: ArrayLike, clusters: ArrayLike) -> float:
    """How many independent items a clustered sample is worth for estimating a share or mean (Kish's design effect).

    Args:
        values: What the mean is of: 1 or 0 for a share, -1, 0 or 1 for a change. Shape ``(items,)``.
        clusters: Source of each item.

    Returns:
        Never more than the number of items; the number of clusters where all values are equal, so that the variance
        between clusters cannot be seen.
    """
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
    return np.column_stack([np.bincount(codes, weights=column) for column in columns.T])


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
        side: ``two-sided``, or only the ``upper`` or the ``lower`` bound at this level.
        clusters: Source of each item; whole sources are resampled.
        weights: How many items each row stands for, where equal ones are counted beforehand; not with ``clusters``.
        resamples: Number of bootstrap samples.
        seed: Of the resampling.

    Returns:
        The statistic with its BCa interval; the percentile interval where BCa is undefined (constant data); the
        jackknife's normal interval beyond 5,000 distinct rows, where resampling gains nothing. nan if the statistic
        is undefined on the data.

    Examples:
        >>> flips = [1, 0, 0, 1, 0, 0, 0, 1, 0, 0]
        >>> e = bootstrap(lambda flip, one: flip / one, flips, [1] * 10)
        >>> e.value, 0 < e.low < e.value < e.high < 1
        (0.3, True)
    """
    _z(level, side)
    if weights is not None and clusters is not None:
        raise MuscleError("weights stand for equal items, which clusters tell apart; give one of the two")
    table = np.column_stack([np.asarray(column, dtype=np.float64) for column in columns])
    if clusters is not None:
        table = cluster_sums(table, clusters)
    # Items with equal rows are interchangeable: resampling items is a multinomial draw of how often each row occurs.
    if weights is None:
        rows, counts = np.unique(table, axis=0, return_counts=True)
    else:
        counts = np.asarray(weights, dtype=np.int64)
        rows, counts = table[counts > 0], counts[counts > 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(*(counts @ rows))) if len(rows) else math.nan
        if not math.isfinite(value):
            return Estimate(math.nan, math.nan, math.nan, level, "undefined")
        low, high, method = _bootstrap_ends(statistic, rows, counts, value, level, side, resamples, seed)
    low, high = _one_sided(low, high, side)
    return Estimate(value, low, high, level, method)


def _bootstrap_ends(
    statistic: Callable[..., Any],
    rows: NDArray[np.float64],
    weights: NDArray[np.int64],
    value: float,
    level: float,
    side: Side,
    resamples: int,
    seed: int,
) -> tuple[float, float, str]:
    n, z = int(weights.sum()), _z(level, side)
    jackknife = np.asarray(statistic(*(weights @ rows - rows).T), dtype=np.float64)
    usable = np.isfinite(jackknife)
    centre = np.average(jackknife[usable], weights=weights[usable]) if usable.any() else 0.0
    deviation = np.where(usable, centre - jackknife, 0.0)
    if len(rows) > _MAX_BOOTSTRAP_ROWS:
        error = math.sqrt((n - 1) / n * float((weights * deviation**2).sum()))
        return value - z * error, value + z * error, "jackknife"
    rng, draws = np.random.default_rng(seed), []
    block = max(1, 4_000_000 // len(rows))
    for start in range(0, resamples, block):
        counts = rng.multinomial(n, weights / n, size=min(block, resamples - start))
        draws.append(np.asarray(statistic(*(counts @ rows).T), dtype=np.float64))
    sample = np.concatenate(draws)
    sample = sample[np.isfinite(sample)]
    tail = (1 - level) / 2 if side == "two-sided" else 1 - level
    ends = _bca_quantiles(sample, value, weights, deviation, tail)
    method = "percentile" if ends is None else "bca"
    low, high = np.quantile(sample, ends or (tail, 1 - tail)) if len(sample) else (math.nan, math.nan)
    return float(low), float(high), method


def _bca_quantiles(
    sample: NDArray[np.float64],
    value: float,
    weights: NDArray[np.int64],
    deviation: NDArray[np.float64],
    tail: float,
) -> tuple[float, float] | None:
    """The corrected quantiles of Efron's bias-corrected and accelerated interval; None where it is undefined."""
    from scipy.special import ndtr, ndtri

    spread = float((weights * deviation**2).sum())
    below = ((sample < value).mean() + (sample <= value).mean()) / 2 if len(sample) else 0.0
    if spread == 0 or not 0 < below < 1:
        return None
    bias = ndtri(below)
    acceleration = float((weights * deviation**3).sum()) / (6 * spread**1.5)
    ends = []
    for z in (ndtri(tail), ndtri(1 - tail)):
        divisor = 1 - acceleration * (bias + z)
        if divisor <= 0:
            return None
        ends.append(float(ndtr(bias + (bias + z) / divisor)))
    return ends[0], ends[1]


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

    Args:
        old_correct: Whether the old model is right, boolean, shape ``(items,)``.
        new_correct: Whether the plain update is right.
        compat_correct: Whether the compatibility model is right.
        level: Confidence level.
        side: ``two-sided``, ``upper`` or ``lower``.
        clusters: Source of each item, where several items share one.
        seed: Of the resampling.
    """
    old = as_correct(old_correct, "old_correct")
    new, compat = as_correct(new_correct, "new_correct"), as_correct(compat_correct, "compat_correct")
    check_lengths(old_correct=old, new_correct=new, compat_correct=compat)
    change = (old & ~compat).astype(np.int8) - (old & ~new)
    if not change.any():
        # Resampling no change gives no change, however few the items; this interval knows how many there are.
        return paired_difference_counts(0, 0, len(change), level=level, side=side)
    if clusters is not None:
        columns, weights = (change, np.ones(len(old))), None
    else:
        columns, weights = ((-1, 0, 1), (1, 1, 1)), np.bincount(change + 1, minlength=3)
    return bootstrap(
        lambda total, items: total / items,
        *columns,
        level=level,
        side=side,
        clusters=clusters,
        weights=weights,
        seed=seed,
    )


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
    added each way).

    Args:
        first_correct: Whether the first model is right, boolean, shape ``(items,)``.
        second_correct: The same of the second model.
        level: Confidence level.
        side: ``two-sided``, or only the ``upper`` or the ``lower`` bound at this level.
        effective_total: Number of independent items, where items come in clusters.
    """
    first, second = as_correct(first_correct, "first_correct"), as_correct(second_correct, "second_correct")
    n = check_lengths(first_correct=first, second_correct=second)
    lost, won = int((first & ~second).sum()), int((~first & second).sum())
    return paired_difference_counts(lost, won, n, level=level, side=side, effective_total=effective_total)


def paired_difference_counts(
    lost: int,
    won: int,
    n: int,
    *,
    level: float = 0.95,
    side: Side = "two-sided",
    effective_total: float | None = None,
) -> Estimate:
    """:func:`paired_difference` from the numbers of items that turned wrong, that turned right, and of all items."""
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "bonett-price")
    shrink = (effective_total or n) / n
    size = shrink * n + 2
    p_lost, p_won = (shrink * lost + 1) / size, (shrink * won + 1) / size
    half = _z(level, side) * math.sqrt((p_won + p_lost - (p_won - p_lost) ** 2) / size)
    value = (won - lost) / n
    ends = (max(-1.0, min(value, p_won - p_lost - half)), min(1.0, max(value, p_won - p_lost + half)))
    low, high = _one_sided(*ends, side, (-1.0, 1.0))
    return Estimate(value, low, high, level, "bonett-price")


def pooled_rate(
    counts: Sequence[int],
    totals: Sequence[int],
    *,
    effective_totals: Sequence[float] | None = None,
    weights: Literal["items", "tasks"] = "tasks",
    level: float = 0.95,
    side: Side = "two-sided",
) -> Estimate:
    """A share over several tasks: the mean of the tasks' shares, with a stratified interval.

    Args:
        counts: Items with the property in each task.
        totals: Items of each task; tasks without items are left out.
        effective_totals: Number of independent items that each task's are worth, where items come in clusters.
        weights: ``tasks``: every task counts the same; ``items``: every item counts the same.
        level: Confidence level.
        side: ``two-sided``, ``upper`` or ``lower``.

    Returns:
        The weighted mean; the interval is Wilson's on the effective number of items, which gives it the variance of
        the stratified mean and keeps it inside [0, 1].
    """
    k, n = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    worth = n if effective_totals is None else np.asarray(effective_totals, dtype=np.float64)
    k, n, worth = k[n > 0], n[n > 0], worth[n > 0]
    if len(n) == 0:
        return Estimate(math.nan, math.nan, math.nan, level, "stratified wilson")
    w = n / n.sum() if weights == "items" else np.full(len(n), 1 / len(n))
    share = float((w * k / n).sum())
    # Shares shrunk towards 1/2 by one item keep tasks without a single flip from counting as certain.
    p = (k / n * worth + 0.5) / (worth + 1)
    mean = float((w * p).sum())
    effective = mean * (1 - mean) / float((w**2 * p * (1 - p) / worth).sum())
    z = _z(level, side)
    centre = (share + z * z / (2 * effective)) / (1 + z * z / effective)
    half = z * math.sqrt(share * (1 - share) / effective + z * z / (4 * effective**2)) / (1 + z * z / effective)
    low, high = _one_sided(max(0.0, centre - half), min(1.0, centre + half), side, (0.0, 1.0))
    return Estimate(share, low, high, level, "stratified wilson", int(k.sum()), int(n.sum()))
