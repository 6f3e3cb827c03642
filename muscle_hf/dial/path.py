"""The measured path: accuracy and flips at each point, and the rules that choose one."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from muscle_hf.compare.document import Document, TaskResult, Update, plain
from muscle_hf.errors import MuscleError
from muscle_hf.metrics.intervals import Estimate

if TYPE_CHECKING:
    from muscle_hf.evaluation.predictions import Prediction

DEFAULT_POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DialPoint:
    """One point of the path on the validation items. Rates are fractions; changes are against v2 (t = 0), paired.

    Args:
        t: 0 is v2's adapter, 1 the compatibility adapter.
        rank: Of the adapter at this point.
        accuracy: With interval; the mean score for tasks with scores.
        nfr: Negative flips against v1; for tasks with scores the share of items that got worse.
        pfr: Positive flips; for scores the share that got better.
        nfr_mc: Negative flips with those among wrong answers; multiple choice only.
        change_of_accuracy: Accuracy (mean score) minus v2's; None at t = 0.
        change_of_nfr: NFR minus v2's; None at t = 0.
    """

    t: float
    rank: int
    accuracy: Estimate
    nfr: Estimate
    pfr: Estimate
    nfr_mc: Estimate | None = None
    change_of_accuracy: Estimate | None = None
    change_of_nfr: Estimate | None = None


@dataclass(frozen=True)
class DialPath:
    """What the points of a dial do on validation items.

    Args:
        task: Name of the task.
        metric: What an answer is judged by.
        kind: ``correct``: answers are right or wrong. ``score``: they have a similarity to the reference.
        items: Number of items.
        accuracy_old: The old model's accuracy (mean score).
        points: By rising ``t``; t = 0 and t = 1 are always there.
        predictions: Point -> what it answered, in the order of the items.
    """

    task: str
    metric: str
    kind: Literal["correct", "score"]
    items: int
    accuracy_old: Estimate
    points: list[DialPoint]
    predictions: Mapping[float, Sequence[Prediction]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, document: Document, ranks: Mapping[float, int], predictions: Mapping[float, Any]) -> DialPath:
        """Read the path off a comparison in which t = 0 is the new model and every other point a candidate, called as
        :func:`label` says; ranks of the adapters and predictions are by t."""
        (task,) = document.tasks
        by_label = {update.label: update for update in task.updates}
        points = [_point(t, ranks[t], task, by_label[label(t)]) for t in sorted(ranks)]
        return cls(task.name, task.metric, task.kind, task.items, task.accuracy_old, points, predictions)

    def point(self, t: float) -> DialPoint:
        """The point at ``t``; a MuscleError where it was not measured."""
        found = next((point for point in self.points if point.t == t), None)
        if found is None:
            listed = ", ".join(f"{point.t:g}" for point in self.points)
            raise MuscleError(f"t = {t:g} was not measured; there are {listed}")
        return found

    @property
    def new(self) -> DialPoint:
        """v2's adapter: t = 0."""
        return self.point(0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data without predictions; nan and infinities are null."""
        data = {name: getattr(self, name) for name in ("task", "metric", "kind", "items", "accuracy_old", "points")}
        return {"schema_version": SCHEMA_VERSION, **plain(data)}

    def to_csv(self) -> str:
        """A row a point: each rate with its count and interval; empty where there is none."""
        names = [name for name in DialPoint.__dataclass_fields__ if name not in ("t", "rank")]
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["t", "rank", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
        for point in self.points:
            ends = [getattr(getattr(point, name), end, None) for name in names for end in ("value", "low", "high")]
            writer.writerow([point.t, point.rank, *("" if end is None or end != end else end for end in ends)])
        return out.getvalue()


def label(t: float) -> str:
    """What the point at ``t`` is called in a comparison: ``t=0.25``."""
    return f"t={t:g}"


def _point(t: float, rank: int, task: TaskResult, update: Update) -> DialPoint:
    suffix = "" if task.kind == "correct" else "_smooth"
    against = update.against_new
    return DialPoint(
        t=t,
        rank=rank,
        accuracy=update.accuracy,
        nfr=update.rates[f"nfr{suffix}"],
        pfr=update.rates[f"pfr{suffix}"],
        nfr_mc=update.rates.get("nfr_mc"),
        change_of_accuracy=None if against is None else against.delta_accuracy,
        change_of_nfr=None if against is None else against.delta_nfr,
    )


def check_points(points: Sequence[float], *, extrapolate: bool = False) -> list[float]:
    """The points to measure, rising, with both ends among them; a MuscleError where a value is no number, or outside
    of [0, 1] without ``extrapolate``."""
    outside = [t for t in points if not 0 <= t <= 1]
    if any(not math.isfinite(t) for t in outside):
        raise MuscleError("a point must be a finite number, 0 for v2's adapter and 1 for the compatibility adapter")
    if outside and not extrapolate:
        raise MuscleError(
            f"the points {', '.join(f'{t:g}' for t in outside)} lie beyond the two adapters: pass extrapolate=True "
            "(--extrapolate) if you mean it; nothing was trained to be there"
        )
    chosen = sorted({0.0, 1.0, *map(float, points)})
    if len({label(t) for t in chosen}) < len(chosen):
        raise MuscleError("two points differ by less than six digits; leave one of them out")
    return chosen


# ---- Rules ----

Rule = Callable[["DialPath"], "DialPoint | None"]


def least_nfr_at_no_loss(path: DialPath, max_loss: float = 0.0) -> DialPoint | None:
    """The least NFR among the points whose accuracy (mean score) is at least v2's less ``max_loss``, a fraction (in
    the unit of the score); None if none of them has less NFR than v2."""
    # Shares of the same items: equal counts are equal but for rounding.
    floor = path.new.accuracy.value - max_loss - 1e-12
    return _least(path, [point for point in path.points if point.accuracy.value >= floor])


def least_nfr(path: DialPath) -> DialPoint | None:
    """The least NFR of all, whatever the accuracy; None if no point has less than v2."""
    return _least(path, path.points)


def most_accurate(path: DialPath) -> DialPoint | None:
    """The highest accuracy, of equals the one with the least NFR; None if no point has more than v2."""
    best = min(path.points, key=lambda point: (-point.accuracy.value, point.nfr.value, point.rank, abs(point.t)))
    return best if best.accuracy.value > path.new.accuracy.value else None


def _least(path: DialPath, points: Sequence[DialPoint]) -> DialPoint | None:
    better = [point for point in points if point.nfr.value < path.new.nfr.value]
    order = lambda point: (point.nfr.value, -point.accuracy.value, point.rank, abs(point.t))  # noqa: E731
    return min(better, key=order, default=None)


RULES: dict[str, Rule] = {rule.__name__: rule for rule in (least_nfr_at_no_loss, least_nfr, most_accurate)}


def choose(path: DialPath, rule: str | Rule = "least_nfr_at_no_loss", *, max_loss: float = 0.0) -> DialPoint | None:
    """The point that a rule chooses; None if none qualifies: then v2's adapter itself stays the best of the path.

    Choosing looks at the validation items, so that the chosen point's figures there are too good. Measure it on test
    items that took no part.

    Args:
        path: The measured path.
        rule: A name in :data:`RULES`, or a function of the path.
        max_loss: For ``least_nfr_at_no_loss`` only.

    Raises:
        MuscleError: No rule of this name, or ``max_loss`` for a rule that does not know it.
    """
    check_rule(rule, max_loss)
    if callable(rule):
        return rule(path)
    if rule == least_nfr_at_no_loss.__name__:
        return least_nfr_at_no_loss(path, max_loss)
    return RULES[rule](path)


def check_rule(rule: str | Rule, max_loss: float = 0.0) -> None:
    """Refuses, before anything is measured, what :func:`choose` would not understand."""
    if not 0 <= max_loss < math.inf:
        raise MuscleError(f"max_loss must be a number of at least 0, got {max_loss}")
    if not callable(rule) and rule not in RULES:
        raise MuscleError(f"there is no rule {rule!r}; there are {', '.join(RULES)}")
    if max_loss and rule != least_nfr_at_no_loss.__name__:
        raise MuscleError("max_loss is for the rule least_nfr_at_no_loss; no other looks at it")
