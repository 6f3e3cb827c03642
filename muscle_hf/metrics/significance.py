"""Paired tests of two models on the same items, and corrections for many comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.errors import MuscleError
from muscle_hf.metrics.flips import as_correct, check_lengths
from muscle_hf.metrics.intervals import cluster_sums

Alternative = Literal["two-sided", "greater", "less"]

# Above this many signs the sum of random signs is normal for all purposes.
_MAX_SIGNS = 5_000


@dataclass(frozen=True)
class TestResult:
    """A paired test.

    Args:
        p_value: Chance of a difference at least this large if there is none; 1.0 where no pair differs.
        first_only: Pairs in which only the first is right.
        second_only: Pairs in which only the second is right.
        alternative: ``two-sided``; ``greater``: the second is right more often; ``less``: less often.
        method: Name of the test.
    """

    p_value: float
    first_only: int
    second_only: int
    alternative: Alternative = "two-sided"
    method: str = "exact McNemar"

    __test__ = False  # not a test case, though pytest would collect the name

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def mcnemar(
    first_correct: ArrayLike, second_correct: ArrayLike, *, alternative: Alternative = "two-sided"
) -> TestResult:
    """Exact McNemar test: are two models right equally often on the same items?

    Args:
        first_correct: Whether the first model is right, boolean, shape ``(items,)``.
        second_correct: The same of the second model.
        alternative: ``greater`` tests whether the second is right more often, ``less`` whether less often.
    """
    first, second = as_correct(first_correct, "first_correct"), as_correct(second_correct, "second_correct")
    check_lengths(first_correct=first, second_correct=second)
    return mcnemar_counts(int((first & ~second).sum()), int((~first & second).sum()), alternative=alternative)


def mcnemar_counts(first_only: int, second_only: int, *, alternative: Alternative = "two-sided") -> TestResult:
    """:func:`mcnemar` from the numbers of pairs in which only the first / only the second is right."""
    from scipy.special import bdtr

    pairs = first_only + second_only
    fewer, more = (float(bdtr(count, pairs, 0.5)) for count in (second_only, first_only))
    tails = {"less": fewer, "greater": more, "two-sided": min(1.0, 2 * min(fewer, more))}
    if alternative not in tails:
        raise MuscleError(f"alternative must be one of {', '.join(tails)}; got {alternative!r}")
    p_value = tails[alternative] if pairs else 1.0
    return TestResult(p_value, first_only, second_only, alternative)


def compat_test(
    old_correct: ArrayLike,
    new_correct: ArrayLike,
    compat_correct: ArrayLike,
    *,
    alternative: Alternative = "two-sided",
) -> TestResult:
    """Does the compatibility model keep more of v1's right answers than v2? McNemar on the items that v1 gets right.

    Args:
        old_correct: Whether the old model is right; only the items where it is are compared.
        new_correct: Whether the plain update is right.
        compat_correct: Whether the compatibility model is right.
        alternative: ``greater``: the compatibility model keeps more, that is, its NFR is lower.
    """
    old = as_correct(old_correct, "old_correct")
    new, compat = as_correct(new_correct, "new_correct"), as_correct(compat_correct, "compat_correct")
    check_lengths(old_correct=old, new_correct=new, compat_correct=compat)
    return mcnemar(new[old], compat[old], alternative=alternative)


def cluster_sign_test(
    changes: ArrayLike, clusters: ArrayLike | None = None, *, resamples: int = 9999, seed: int = 0
) -> float:
    """Two-sided p-value of paired changes whose sign is a coin toss, one toss for each cluster (or item).

    Args:
        changes: Change of each item: -1, 0, 1 for right / wrong, or differences of scores. Shape ``(items,)``.
        clusters: Source of each item; items of one source keep a common sign. Each item its own source by default.
        resamples: Random sign assignments; the smallest p-value is ``1 / (resamples + 1)``.
        seed: Of the random signs.
    """
    sums = np.asarray(changes, dtype=np.float64)
    if clusters is not None:
        sums = cluster_sums(sums[:, None], clusters)[:, 0]
    sums = sums[sums != 0]
    if len(sums) == 0:
        return 1.0
    observed = abs(sums.sum())
    if len(sums) > _MAX_SIGNS:
        from scipy.special import ndtr

        return float(2 * ndtr(-observed / math.sqrt(float((sums**2).sum()))))
    rng = np.random.default_rng(seed)
    slack, extreme, block = 1e-9 * float(np.abs(sums).sum()), 0, max(1, 2_000_000 // len(sums))
    for start in range(0, resamples, block):
        signs = rng.integers(0, 2, (min(block, resamples - start), len(sums)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ sums) >= observed - slack).sum())
    return (extreme + 1) / (resamples + 1)


def holm(p_values: Sequence[float]) -> NDArray[np.float64]:
    """Holm's correction: p-values that hold together over several tasks or slices; nan stays nan and does not count.

    Examples:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(values), math.nan)
    order = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # nan sorts last
    left = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * left))
    return adjusted


def stratified_mcnemar(
    strata: Sequence[tuple[ArrayLike, ArrayLike]], *, alternative: Alternative = "two-sided"
) -> TestResult:
    """McNemar's test over several tasks at once: each flip is a coin toss in its own task, so the flips add up.

    Args:
        strata: ``(first_correct, second_correct)`` of each task.
        alternative: See :func:`mcnemar`.
    """
    results = [mcnemar(first, second) for first, second in strata]
    return mcnemar_counts(
        sum(result.first_only for result in results),
        sum(result.second_only for result in results),
        alternative=alternative,
    )
