"""One model held against an older one on the same items: every flip number and its interval come from here."""

from __future__ import annotations

import dataclasses
import operator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muscle_hf.metrics.flips import fell, quadrants, ratio
from muscle_hf.metrics.intervals import (
    Estimate,
    Side,
    bootstrap,
    effective_items,
    mean_change,
    paired_difference,
    wilson_interval,
)
from muscle_hf.metrics.significance import cluster_sign_test, mcnemar, run_permutation_test

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Kind = Literal["correct", "score"]

# Outcomes of an item by their codes, and the names of their counts.
OUTCOMES: dict[str, tuple[str, ...]] = {
    "correct": ("both_right", "positive", "both_wrong", "negative"),
    "score": ("improved", "unchanged", "regressed"),
}
COUNTS: dict[str, tuple[str, ...]] = {
    "correct": ("both_right", "positive_flips", "both_wrong", "negative_flips"),
    "score": OUTCOMES["score"],
}


@dataclass(frozen=True)
class Update:
    """An updated model against the old one. ``nfr`` is always of the model named here against the old one.

    Args:
        before: The old model's value of each item, higher is better, float64, shape ``(items,)``: 1 and 0 for right
            and wrong, the rate of right answers where an item was answered several times, or a score.
        after: The updated model's.
        kind: ``correct``, or ``score``.
        epsilon: Changes of a score of at most this size are none.
        answers: Of both models, equal for equal answers; None where they are unknown.
        choice: Whether answers are one of a few choices.
        chance: Of a guess to be right, where the number of choices is known.
        runs: Right (1) or wrong (0) in each run of both models, shape ``(items, runs)``, nan for none; None where each
            item was answered once.
        clusters, level, side, seed: See :mod:`~muscle_hf.metrics.intervals`.
    """

    before: Floats
    after: Floats
    kind: Kind = "correct"
    epsilon: float = 0.0
    answers: tuple[NDArray[Any], NDArray[Any]] | None = None
    choice: bool = False
    chance: float | None = None
    runs: tuple[Floats, Floats] | None = None
    clusters: NDArray[Any] | None = None
    level: float = 0.95
    side: Side = "two-sided"
    seed: int = 0

    def only(self, items: NDArray[Any]) -> Update:
        """The same of some items: a mask, or their numbers."""
        return dataclasses.replace(
            self,
            before=self.before[items],
            after=self.after[items],
            answers=None if self.answers is None else (self.answers[0][items], self.answers[1][items]),
            runs=None if self.runs is None else (self.runs[0][items], self.runs[1][items]),
            clusters=None if self.clusters is None else self.clusters[items],
        )

    @cached_property
    def rated(self) -> bool:
        """Whether items are right at a rate instead of right or wrong."""
        return self.kind == "correct" and self.runs is not None

    @cached_property
    def right(self) -> tuple[Bools, Bools]:
        """Who is right, mostly where items were answered several times."""
        return self.before > 0.5, self.after > 0.5

    @cached_property
    def lost(self) -> Bools:
        """Negative flips, of items right at a rate by the majority; for scores, items that got worse."""
        return fell(*(self.right if self.kind == "correct" else (self.before, self.after)), self.epsilon)

    @cached_property
    def gained(self) -> Bools:
        """Positive flips; for scores, items that got better."""
        return dataclasses.replace(self, before=self.after, after=self.before).lost

    @cached_property
    def codes(self) -> NDArray[np.int8]:
        """Outcome of each item: an index into :data:`OUTCOMES`."""
        if self.kind == "score":
            return np.select([self.gained, self.lost], [0, 2], 1).astype(np.int8)
        return np.select([self.lost, self.gained, self.right[0]], [3, 1, 0], 2).astype(np.int8)

    @property
    def counts(self) -> dict[str, int]:
        """Number of items by outcome."""
        names = COUNTS[self.kind]
        return dict(zip(names, np.bincount(self.codes, minlength=len(names)).tolist(), strict=True))

    @property
    def loss(self) -> NDArray[Any]:
        """What each item adds to the NFR: 1 for a negative flip, what a rate falls by, else 0."""
        return np.maximum(self.before - self.after, 0.0) if self.rated else self.lost.astype(np.int8)

    @property
    def gain(self) -> NDArray[Any]:
        """What each item adds to the PFR."""
        return np.maximum(self.after - self.before, 0.0) if self.rated else self.gained.astype(np.int8)

    def numbers(self) -> dict[str, float]:
        """Without intervals, for logs: ``acc`` (``score``) and ``acc_old``, ``nfr``, ``pfr``; of answers also ``btc``,
        ``relative_nfr`` and, of choices, ``nfr_mc``; of scores ``m_g``, ``m_r``. nan where a denominator is empty."""
        value = "score" if self.kind == "score" else "acc"
        means = {value: self.after, f"{value}_old": self.before, "nfr": self.loss, "pfr": self.gain}
        found = {name: ratio(values.sum(), len(values)) for name, values in means.items()}
        if self.kind == "score":
            change = self.after - self.before
            sizes = {"m_g": change[self.gained], "m_r": -change[self.lost]}
            return found | {name: ratio(moved.sum(), len(moved)) for name, moved in sizes.items()}
        if self.choice and self.answers is not None:
            found["nfr_mc"] = ratio(self.lost_mc.sum(), len(self.after))
        q = quadrants(*self.right)
        return found | {"btc": q.btc, "relative_nfr": q.relative_nfr}

    @property
    def lost_mc(self) -> Bools:
        """Wrong and another answer than the old one."""
        assert self.answers is not None
        return ~self.right[1] & (self.answers[0] != self.answers[1])

    def share(self, indicator: Bools, among: Bools | None = None) -> Estimate:
        """The share of items with a property among some (or all), as wide as clusters make it."""
        chosen = indicator if among is None else indicator[among]
        clusters = self.clusters if self.clusters is None or among is None else self.clusters[among]
        worth = effective_items(chosen, clusters)
        return wilson_interval(int(chosen.sum()), len(chosen), level=self.level, side=self.side, effective_total=worth)

    def mean(self, values: NDArray[Any]) -> Estimate:
        """Mean of a number of each item."""
        return mean_change(values, level=self.level, side=self.side, clusters=self.clusters, seed=self.seed)

    def quality(self, values: Floats) -> Estimate:
        """Accuracy (mean score) of one of the models."""
        return self.share(values > 0.5) if self.kind == "correct" and not self.rated else self.mean(values)

    @property
    def nfr(self) -> Estimate:
        """Negative flip rate; for items right at a rate the mean of what the rates lose."""
        return self.mean(self.loss) if self.rated and self.loss.any() else self.share(self.lost)

    @property
    def pfr(self) -> Estimate:
        """Positive flip rate."""
        return self.mean(self.gain) if self.rated and self.gain.any() else self.share(self.gained)

    @property
    def change(self) -> Estimate:
        """Accuracy (mean score) of the updated model minus the old one's."""
        moved = self.after - self.before
        if (self.kind == "score" or self.rated) and moved.any():
            return self.mean(moved)
        # Resampling what never changes would be sure of it, however few the items.
        before, after = self.right
        worth = effective_items(after.astype(np.int8) - before, self.clusters)
        found = paired_difference(before, after, level=self.level, side=self.side, effective_total=worth)
        span = max(1.0, np.abs(self.before).max(initial=0.0)) if self.kind == "score" else 1.0
        return dataclasses.replace(found, low=span * found.low, high=span * found.high)

    @cached_property
    def by_runs(self) -> bool:
        """Whether the rates are those of the runs, so that exchanging runs says what chance makes of them."""
        if self.kind != "correct" or self.runs is None:
            return False
        pairs = zip((self.before, self.after), self.runs, strict=True)
        return all(np.allclose(value, np.nanmean(runs, 1)) for value, runs in pairs)

    @cached_property
    def permuted(self) -> tuple[float, float]:
        """Of items right at a rate: p-value of the change, and the NFR that chance alone makes of two equal models."""
        assert self.runs is not None
        return run_permutation_test(*self.runs, seed=self.seed)

    @property
    def p_value(self) -> float:
        """Two-sided paired test of the change."""
        if self.clusters is None and self.by_runs:
            return self.permuted[0]
        if self.clusters is None and self.kind == "correct" and not self.rated:
            return mcnemar(*self.right).p_value
        return cluster_sign_test(self.after - self.before, self.clusters, seed=self.seed)

    def rates(self) -> dict[str, Estimate]:
        """Every rate that the data allow, by the keys that ``compare`` prints."""
        if self.kind == "score":
            return {
                "nfr_smooth": self.nfr,
                "pfr_smooth": self.pfr,
                "m_g": self._size(self.after - self.before, self.gained),
                "m_r": self._size(self.before - self.after, self.lost),
            }
        old, new = self.right
        rates = {"nfr": self.nfr, "pfr": self.pfr}
        if self.chance is not None and len(old):
            odds = self.chance / (1 - self.chance)  # of the one guessing right where the other guesses wrong
            rates["nfr_adjusted"] = self._of_sums(
                lambda lost, old, new, n: np.maximum(lost / n - (1 - old / n) * (1 - new / n) * odds, 0.0)
            )
        if self.answers is not None and not self.rated:
            if self.choice:
                rates["nfr_mc"] = self.share(self.lost_mc)
            rates["agreement"] = self.share(self.answers[0] == self.answers[1])
        if self.rated:
            return rates
        rates |= {"btc": self.share(new, old), "bec": self.share(~old, ~new), "nfi": self.share(old, ~new)}
        rates["relative_nfr"] = self._of_sums(lambda lost, old, new, n: lost * n / (old * (n - new)))
        return rates

    def _of_sums(self, statistic: Any) -> Estimate:
        """A function of the sums of what is lost, of both models' right answers, and of items."""
        columns, weights = (self.loss, self.before, self.after, np.ones(len(self.before))), None
        if self.clusters is None and not self.rated:  # equal items are counted beforehand
            q = quadrants(*self.right)
            columns = ((0, 0, 0, 1), (1, 0, 0, 1), (1, 1, 0, 0), (1, 1, 1, 1))
            weights = (q.both_right, q.positive_flips, q.both_wrong, q.negative_flips)
        return bootstrap(
            statistic, *columns, level=self.level, clusters=self.clusters, weights=weights, seed=self.seed
        )

    def _size(self, change: Floats, moved: Bools) -> Estimate:
        """Mean of the change among the items that moved."""
        columns = np.where(moved, change, 0.0), moved
        return bootstrap(operator.truediv, *columns, level=self.level, clusters=self.clusters, seed=self.seed)
