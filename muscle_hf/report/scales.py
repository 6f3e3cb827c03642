"""From data to coordinates: linear scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps ``[low, high]`` to pixels ``[start, end]``, clamped at both ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values within the scale, about ``count`` of them."""
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]


def fit(values: Iterable[float], start: float, end: float, *, zero: bool = False, pad: float = 0.06) -> Scale:
    """A scale that holds all finite ``values``.

    Args:
        values: Data; nan and infinities are left out.
        start: Pixel of the lower end.
        end: Pixel of the upper end.
        zero: Include zero. A side on which all values have one sign then begins at zero exactly.
        pad: Share of the range to leave free on each side.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9:
        low, high = (0.0, 0.01) if zero and abs(low) < 1e-9 else (low - 0.01, high + 0.01)
    margin = pad * (high - low)
    return Scale(low if zero and low == 0 else low - margin, high if zero and high == 0 else high + margin, start, end)


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return power * min((1, 2, 5, 10), key=lambda step: abs(math.log(step * power / raw)))
