"""How many items a limit needs, so that an update that keeps it is likely shown to keep it."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable

# A gate that needs more items than this cannot be fed.
_MOST = 10_000_000


def items_for_rate(limit: float, expected: float, *, level: float = 0.95, power: float = 0.8) -> int | None:
    """Items after which the one-sided Wilson bound of a rate most likely lies on the rate's own side of a limit.

    Args:
        limit: The limit, in (0, 1).
        expected: The rate that is expected. Below the limit the upper bound shall keep it, above the lower break it.
        level: Confidence of the bound.
        power: How likely the decision shall be.

    Returns:
        None where no number of items is enough: at the limit itself.
    """
    from scipy.special import bdtr, bdtrc, ndtri

    if not 0 < limit < 1 or expected == limit:
        return None
    z = float(ndtri(level))

    def decides(n: int) -> bool:
        # Wilson's bound inverts the score test: it is at the limit where the rate is this far from it.
        distance = z * math.sqrt(limit * (1 - limit) / n)
        if expected < limit:
            return float(bdtr(math.floor(n * (limit - distance) + 1e-9), n, expected)) >= power
        return float(bdtrc(math.floor(n * (limit + distance) + 1e-9), n, expected)) >= power

    return _smallest(decides)


def items_for_change(
    limit: float, expected: float, flips: float, *, level: float = 0.95, power: float = 0.8
) -> int | None:
    """The same for the fall of accuracy, whose variance is that of the flips (normal approximation).

    Args:
        limit: How far the accuracy may fall.
        expected: How far it falls; negative for a gain.
        flips: Share of items that flip, either way.
        level: Confidence of the bound.
        power: How likely the decision shall be.
    """
    from scipy.special import ndtri

    if expected == limit:
        return None
    spread = ((ndtri(level) + ndtri(power)) / (limit - expected)) ** 2
    # As in the interval, one flip is added each way.
    return _smallest(lambda n: spread * max((flips * n + 2) / (n + 2) - expected**2, 0.0) <= n)


def _smallest(enough: Callable[[int], bool]) -> int | None:
    top = next((size for size in (2**k for k in range(_MOST.bit_length())) if enough(size)), None)
    return None if top is None else bisect_left(range(1, top), True, top // 2, key=enough) + 1
