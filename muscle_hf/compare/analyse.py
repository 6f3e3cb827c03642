"""From joined answers to the numbers of a document: one task, all updated models."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.document import AgainstNew, Flow, Model, Pooled, TaskResult, Update, Verdict
from muscle_hf.compare.join import Joined
from muscle_hf.compare.lm_eval_format import base_task
from muscle_hf.metrics.flips import quadrants
from muscle_hf.metrics.intervals import (
    Estimate,
    bootstrap,
    effective_items,
    nfr_change,
    paired_difference,
    pooled_rate,
    wilson_interval,
)
from muscle_hf.metrics.significance import cluster_sign_test, holm, mcnemar, stratified_mcnemar

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class AnalysisOptions:
    """What is asked of a comparison.

    Args:
        level: Confidence level of intervals; verdicts are taken at ``1 - level``.
        epsilon: Changes of a score of at most this size count as no change.
        slices: Columns to slice by; None for those that look like categories; empty for none.
        cluster: Column that names the source of each item, where several items share one.
        max_flips: The most flips listed for each task.
        seed: Of the resampling.
    """

    level: float = 0.95
    epsilon: float = 0.0
    slices: Sequence[str] | None = None
    cluster: str | None = None
    max_flips: int = 20_000
    seed: int = 0


def verdict(change: float, p_value: float, level: float) -> Verdict:
    """Better or worse where the (corrected) p-value allows to say so; ``change`` is positive for better."""
    if math.isnan(p_value) or p_value >= 1 - level or change == 0:
        return "no difference shown"
    return "better" if change > 0 else "worse"


def outcomes(joined: Joined, label: str, epsilon: float) -> NDArray[np.int8]:
    """Outcome of each item for an updated model: an index into :func:`outcome_names`."""
    old, here = joined.values[joined.labels[0]], joined.values[label]
    if joined.kind == "correct":
        return np.where(old > 0.5, np.where(here > 0.5, 0, 3), np.where(here > 0.5, 1, 2)).astype(np.int8)
    change = here - old
    return np.where(change > epsilon, 0, np.where(change < -epsilon, 2, 1)).astype(np.int8)


def outcome_names(kind: str) -> tuple[str, ...]:
    """Names of the outcomes, as :attr:`Flip.outcomes <muscle_hf.compare.document.Flip>` has them."""
    if kind == "correct":
        return ("both_right", "positive", "both_wrong", "negative")
    return ("improved", "unchanged", "regressed")


def share(
    indicator: Bools, among: Bools | None = None, *, clusters: NDArray[np.int32] | None, level: float
) -> Estimate:
    """The share of items with a property among some (or all) items, as wide as clustered items make it."""
    chosen = indicator if among is None else indicator[among]
    if clusters is not None and among is not None:
        clusters = clusters[among]
    effective = None if clusters is None or not len(chosen) else effective_items(chosen, clusters)
    return wilson_interval(int(chosen.sum()), len(chosen), level=level, effective_total=effective)


COUNT_NAMES = {
    "correct": ("both_right", "positive_flips", "both_wrong", "negative_flips"),
    "score": ("improved", "unchanged", "regressed"),
}


class TaskAnalysis:
    """The numbers of one task; p-values are corrected when those of all tasks are known (:func:`correct_tasks`).

    Args:
        joined: The items of the task.
        models: All models, old first.
        options: See :class:`AnalysisOptions`.
    """

    def __init__(self, joined: Joined, models: Sequence[Model], options: AnalysisOptions) -> None:
        self.joined, self.models, self.options = joined, models, options
        self.old = joined.labels[0]
        self.items = len(joined.ids)
        self.clusters = None if options.cluster is None else joined.columns[options.cluster][0]

    def result(self) -> TaskResult:
        """Everything but the slices and the list of flips."""
        return TaskResult(
            name=self.joined.task,
            metric=self.joined.metric,
            kind=self.joined.kind,  # type: ignore[arg-type]
            items=self.items,
            accuracy_old=self._level_of(self.joined.values[self.old]),
            updates=[self._update(model) for model in self.models[1:]],
            left_out=self.joined.left_out,
            missing=self.joined.missing,
            doubt=self.joined.doubt,
        )

    def _rate(self, indicator: Bools, among: Bools | None = None) -> Estimate:
        return share(indicator, among, clusters=self.clusters, level=self.options.level)

    def _mean(self, values: Floats) -> Estimate:
        return self._ratio(values, np.ones(len(values)))

    def _ratio(self, above: Floats, below: Floats) -> Estimate:
        return bootstrap(
            lambda a, b: a / b,
            above,
            below,
            level=self.options.level,
            clusters=self.clusters,
            seed=self.options.seed,
        )

    def _level_of(self, values: Floats) -> Estimate:
        return self._rate(values > 0.5) if self.joined.kind == "correct" else self._mean(values)

    def _update(self, model: Model) -> Update:
        joined, label = self.joined, model.label
        codes = outcomes(joined, label, self.options.epsilon)
        counts = np.bincount(codes, minlength=len(COUNT_NAMES[joined.kind])).tolist()
        graded = joined.kind == "correct"
        change = self._accuracy_change(self.old, label)
        p_value = self._paired_p(self.old, label)
        return Update(
            label=label,
            role=model.role,
            accuracy=self._level_of(joined.values[label]),
            change=change,
            counts=dict(zip(COUNT_NAMES[joined.kind], counts, strict=True)),
            rates=self._rates(label) if graded else self._smooth_rates(label),
            p_value=p_value,
            p_adjusted=p_value,
            verdict=verdict(change.value, p_value, self.options.level),
            against_new=self._against_new(label) if model.role == "compat" else None,
        )

    def _accuracy_change(self, first: str, second: str) -> Estimate:
        if self.joined.kind == "score":
            return self._mean(self.joined.values[second] - self.joined.values[first])
        before, after = self.joined.correct(first), self.joined.correct(second)
        effective = None
        if self.clusters is not None:
            effective = effective_items(after.astype(np.int8) - before, self.clusters)
        return paired_difference(before, after, level=self.options.level, effective_total=effective)

    def _paired_p(self, first: str, second: str, among: Bools | None = None) -> float:
        before, after = self.joined.values[first], self.joined.values[second]
        clusters = self.clusters
        if among is not None:
            before, after = before[among], after[among]
            clusters = None if clusters is None else clusters[among]
        if self.joined.kind == "score" or clusters is not None:
            return cluster_sign_test(after - before, clusters, seed=self.options.seed)
        return mcnemar(before > 0.5, after > 0.5).p_value

    def _rates(self, label: str) -> dict[str, Estimate]:
        old, here = self.joined.correct(self.old), self.joined.correct(label)
        flip = old & ~here
        rates = {"nfr": self._rate(flip), "pfr": self._rate(~old & here)}
        answers, before = self.joined.answers[label], self.joined.answers[self.old]
        if answers is not None and before is not None:
            if self.joined.choice:
                rates["nfr_mc"] = self._rate(~here & (answers != before))
            rates["agreement"] = self._rate(answers == before)
        rates |= {
            "btc": self._rate(here, among=old),
            "bec": self._rate(~old, among=~here),
            "nfi": self._rate(old, among=~here),
        }
        rates["relative_nfr"] = self._relative_nfr(old, here)
        return rates

    def _relative_nfr(self, old: Bools, here: Bools) -> Estimate:
        columns, weights = (old & ~here, old, ~here, np.ones(self.items)), None
        if self.clusters is None:
            q = quadrants(old, here)
            columns = ((0, 0, 0, 1), (1, 0, 0, 1), (0, 0, 1, 1), (1, 1, 1, 1))
            weights = (q.both_right, q.positive_flips, q.both_wrong, q.negative_flips)
        return bootstrap(
            lambda flips, right, wrong, n: flips * n / (right * wrong),
            *columns,
            level=self.options.level,
            clusters=self.clusters,
            weights=weights,
            seed=self.options.seed,
        )

    def _smooth_rates(self, label: str) -> dict[str, Estimate]:
        change = self.joined.values[label] - self.joined.values[self.old]
        gain, loss = change > self.options.epsilon, change < -self.options.epsilon
        return {
            "nfr_smooth": self._rate(loss),
            "pfr_smooth": self._rate(gain),
            "m_g": self._ratio(np.where(gain, change, 0.0), gain.astype(np.float64)),
            "m_r": self._ratio(np.where(loss, -change, 0.0), loss.astype(np.float64)),
        }

    def _against_new(self, label: str) -> AgainstNew:
        new = self.joined.labels[1]
        if self.joined.kind == "correct":
            delta_nfr, delta_pfr = self._flip_changes(new, label)
            nfr = quadrants(self.joined.correct(self.old), self.joined.correct(new)).nfr
            p_value = self._paired_p(new, label, among=self.joined.correct(self.old))
            better = -delta_nfr.value
        else:
            codes = [outcomes(self.joined, name, self.options.epsilon) for name in (new, label)]
            lost, gained = ([(code == i).astype(np.float64) for code in codes] for i in (2, 0))
            delta_nfr, delta_pfr = self._mean(lost[1] - lost[0]), self._mean(gained[1] - gained[0])
            nfr = float(lost[0].mean()) if self.items else math.nan
            p_value = self._paired_p(new, label)
            better = float((self.joined.values[label] - self.joined.values[new]).sum())
        return AgainstNew(
            delta_nfr=delta_nfr,
            delta_nfr_percent=100 * delta_nfr.value / nfr if nfr else math.nan,
            delta_pfr=delta_pfr,
            delta_accuracy=self._accuracy_change(new, label),
            p_value=p_value,
            p_adjusted=p_value,
            verdict=verdict(better, p_value, self.options.level),
            flows=self._flows(new, label),
        )

    def _flip_changes(self, new: str, label: str) -> tuple[Estimate, Estimate]:
        old, plain, compat = (self.joined.correct(name) for name in (self.old, new, label))
        settings = {"level": self.options.level, "clusters": self.clusters, "seed": self.options.seed}
        # A positive flip is a negative flip of the complements.
        return nfr_change(old, plain, compat, **settings), nfr_change(~old, ~plain, ~compat, **settings)

    def _flows(self, new: str, label: str) -> list[Flow]:
        if self.joined.kind == "correct":
            names: tuple[tuple[str, ...], ...] = (("wrong", "right"),) * 3
            codes = [self.joined.correct(name).astype(np.int64) for name in (self.old, new, label)]
        else:
            names = (("start",), outcome_names("score"), outcome_names("score"))
            shifts = [outcomes(self.joined, name, self.options.epsilon).astype(np.int64) for name in (new, label)]
            codes = [np.zeros(self.items, dtype=np.int64), *shifts]
        sizes = [len(states) for states in names]
        joint = np.bincount(np.ravel_multi_index(codes, sizes), minlength=math.prod(sizes)).tolist()
        return [Flow(states, n) for states, n in zip(itertools.product(*names), joint, strict=True)]  # type: ignore[arg-type]


def correct_tasks(tasks: Sequence[TaskResult], level: float) -> list[TaskResult]:
    """Holm's correction over the tasks, separately for each model and for "against old" and "against new"."""
    if not tasks:
        return []
    columns = list(zip(*(task.updates for task in tasks), strict=True))
    corrected = [_correct_column(updates, level) for updates in columns]
    return [dataclasses.replace(task, updates=[column[i] for column in corrected]) for i, task in enumerate(tasks)]


def _correct_column(updates: Sequence[Update], level: float) -> list[Update]:
    adjusted = holm([update.p_value for update in updates]).tolist()
    against = holm([math.nan if u.against_new is None else u.against_new.p_value for u in updates]).tolist()
    result = []
    for update, p_old, p_new in zip(updates, adjusted, against, strict=True):
        versus = update.against_new
        if versus is not None:
            kept = versus.verdict if p_new < 1 - level else "no difference shown"
            versus = dataclasses.replace(versus, p_adjusted=p_new, verdict=kept)
        kept = update.verdict if p_old < 1 - level else "no difference shown"
        result.append(dataclasses.replace(update, p_adjusted=p_old, verdict=kept, against_new=versus))
    return result


def pool(joined: Sequence[Joined], models: Sequence[Model], options: AnalysisOptions) -> list[Pooled]:
    """The updated models over all right-or-wrong tasks; nothing where there are fewer than two, or filters of one."""
    tasks = [task for task in joined if task.kind == "correct"]
    if len(tasks) < 2 or len({base_task(task.task) for task in tasks}) < len(tasks):
        return []
    old, new = models[0].label, models[1].label
    result = []
    for model in models[1:]:
        lost = [task.correct(old) & ~task.correct(model.label) for task in tasks]
        settings = {
            "counts": [int(flips.sum()) for flips in lost],
            "totals": [len(flips) for flips in lost],
            "effective_totals": [
                _worth(task, flips, options.cluster) for task, flips in zip(tasks, lost, strict=True)
            ],
            "level": options.level,
        }
        everywhere = [np.ones(len(task.ids), dtype=bool) for task in tasks]
        kept = [task.correct(old) for task in tasks]
        compat = model.role == "compat"
        result.append(
            Pooled(
                label=model.label,
                tasks=len(tasks),
                nfr=pooled_rate(weights="tasks", **settings),
                nfr_items=pooled_rate(weights="items", **settings),
                p_value=_pooled_p(tasks, old, model.label, everywhere, options),
                p_value_against_new=_pooled_p(tasks, new, model.label, kept, options) if compat else None,
            )
        )
    return result


def _worth(task: Joined, indicator: Bools, cluster: str | None) -> float:
    return float(len(indicator)) if cluster is None else effective_items(indicator, task.columns[cluster][0])


def _pooled_p(
    tasks: Sequence[Joined], first: str, second: str, among: Sequence[Bools], options: AnalysisOptions
) -> float:
    pairs = [
        (task.correct(first)[chosen], task.correct(second)[chosen]) for task, chosen in zip(tasks, among, strict=True)
    ]
    if options.cluster is None:
        return stratified_mcnemar(pairs).p_value
    changes = np.concatenate([after.astype(np.int8) - before for before, after in pairs])
    codes, start = [], 0
    for task, chosen in zip(tasks, among, strict=True):  # a source of one task is not a source of another
        codes.append(task.columns[options.cluster][0][chosen] + start)
        start += len(task.columns[options.cluster][1]) + 1
    return cluster_sign_test(changes, np.concatenate(codes), seed=options.seed)
