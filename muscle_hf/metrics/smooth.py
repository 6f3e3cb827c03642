"""Flips for tasks whose answers are more or less good, not right or wrong (section 3.2 of the paper)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.errors import MuscleError
from muscle_hf.metrics.flips import check_lengths, fell, ratio, with_compat


def as_scores(values: ArrayLike, name: str = "scores") -> NDArray[np.float64]:
    """Checks and converts a one-dimensional array of finite similarity scores."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise MuscleError(f"{name} must be one-dimensional, one score per item; got shape {array.shape}")
    bad = ~np.isfinite(array)
    if bad.any():
        raise MuscleError(
            f"{name} holds {int(bad.sum())} score(s) that are nan or infinite, the first at position "
            f"{int(bad.argmax())}; drop or rescore those items for every model"
        )
    return array


def score_changes(old_scores: ArrayLike, new_scores: ArrayLike) -> NDArray[np.float64]:
    """D(x) = S(new(x), y) - S(old(x), y) for each item; shape ``(items,)``, float64."""
    old, new = as_scores(old_scores, "old_scores"), as_scores(new_scores, "new_scores")
    check_lengths(old_scores=old, new_scores=new)
    return new - old


def check_epsilon(epsilon: float) -> None:
    """Refuse what is no size of a change."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise MuscleError(f"epsilon must be a finite number of at least 0, got {epsilon}")


def _metrics_of_scores(old: NDArray[np.float64], new: NDArray[np.float64], epsilon: float) -> dict[str, float]:
    changes = new - old
    gains, losses = changes[fell(new, old, epsilon)], changes[fell(old, new, epsilon)]
    return {
        "items": len(changes),
        "score_old": ratio(old.sum(), len(old)),
        "score_new": ratio(new.sum(), len(new)),
        "improved": len(gains),
        "regressed": len(losses),
        "pfr_smooth": ratio(len(gains), len(changes)),
        "nfr_smooth": ratio(len(losses), len(changes)),
        "m_g": ratio(gains.sum(), len(gains)),
        "m_r": ratio(-losses.sum(), len(losses)),
    }


def smooth_flip_metrics(
    old_scores: ArrayLike, new_scores: ArrayLike, *, compat_scores: ArrayLike | None = None, epsilon: float = 0.0
) -> dict[str, float]:
    """Gains and regressions of an update measured by a similarity to the reference (section 3.2).

    Args:
        old_scores: S(old(x), y) for each item, higher is better. Shape ``(items,)``; any similarity, any scale.
        new_scores: The same for the new model.
        compat_scores: The same for the compatibility model; adds the suffix-c forms.
        epsilon: Changes of at most this size count as no change, in the similarity's unit. 0 as in the paper.

    Returns:
        ``items``; ``score_old``, ``score_new`` (means); ``improved``, ``regressed`` (counts); ``pfr_smooth`` and
        ``nfr_smooth``, the shares of items with D > epsilon and D < -epsilon; ``m_g`` and ``m_r``, the mean size of D
        among each (nan if there are none). With a compatibility model also ``score_c``, ``nfr_smooth_c``, ..., their
        differences ``delta_<name>_c`` (c minus plain), and ``delta_nfr_smooth_c_percent``.

    Raises:
        MuscleError: Unequal lengths, a score that is nan or infinite, or a negative epsilon.

    Examples:
        >>> m = smooth_flip_metrics([0.5, 0.5, 0.5], [0.75, 0.25, 0.5])
        >>> m["pfr_smooth"] == m["nfr_smooth"] == 1 / 3, m["m_g"], m["m_r"]
        (True, 0.25, 0.25)
    """
    check_epsilon(epsilon)
    old, new = as_scores(old_scores, "old_scores"), as_scores(new_scores, "new_scores")
    compat = None if compat_scores is None else as_scores(compat_scores, "compat_scores")
    check_lengths(old_scores=old, new_scores=new, compat_scores=compat)
    plain = _metrics_of_scores(old, new, epsilon)
    if compat is None:
        return plain
    deltas = ("score", "pfr_smooth", "nfr_smooth", "m_g", "m_r")
    return with_compat(plain, _metrics_of_scores(old, compat, epsilon), "score", deltas, ("nfr_smooth",))
