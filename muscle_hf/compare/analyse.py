"""From joined answers to the numbers of a document: one task, all updated models."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb

from muscle_hf.compare import document as d
from muscle_hf.compare.join import Joined
from muscle_hf.errors import MuscleError
from muscle_hf.metrics.intervals import Estimate, Side, mean_change
from muscle_hf.metrics.significance import holm
from muscle_hf.metrics.update import OUTCOMES, Update

# Ways to count repeated answers.
_WAYS = re.compile(r"mean|majority|pass@[1-9]\d*")
# Columns of numbers that say what an answer takes.
_COST = re.compile(r"token|cost|price|latency|duration|second|time|length|words|chars", re.IGNORECASE)
# Items that texts are read of where a few say enough: how many choices there are, how long answers are.
_SAMPLE = 2000


@dataclass(frozen=True)
class AnalysisOptions:
    """What is asked of a comparison; a MuscleError where it means nothing.

    Args:
        level: Confidence level of intervals; verdicts are taken at ``1 - level``.
        epsilon: Changes of a score of at most this size count as no change.
        slices: Columns to slice by; None for those that look like categories; empty for none.
        cluster: Column that names the source of each item, where several items share one.
        max_flips: The most flips listed for each task.
        seed: Of the resampling.
        repeats: What counts where items were answered several times: ``mean`` (the rate of right answers),
            ``majority``, or ``pass@K`` (some of K answers is right).
    """

    level: float = 0.95
    epsilon: float = 0.0
    slices: Sequence[str] | None = None
    cluster: str | None = None
    max_flips: int = 20_000
    seed: int = 0
    repeats: str = "mean"

    def __post_init__(self) -> None:
        if not 0.5 <= self.level < 1:
            raise MuscleError(f"level must lie between 0.5 and 1, for example 0.95; got {self.level}")
        if not 0 <= self.epsilon < float("inf"):
            raise MuscleError(f"epsilon must be a finite number of at least 0, got {self.epsilon}")
        if not _WAYS.fullmatch(self.repeats):
            raise MuscleError(f"repeated answers count by 'mean', 'majority' or 'pass@K', not by {self.repeats!r}")
        if self.max_flips < 0:
            raise MuscleError(f"max_flips must be at least 0, got {self.max_flips}")


def verdict(change: float, p_value: float, level: float) -> d.Verdict:
    """Better or worse where the (corrected) p-value allows to say so; ``change`` is positive for better."""
    if math.isnan(p_value) or p_value >= 1 - level or change == 0:
        return "no difference shown"
    return "better" if change > 0 else "worse"


def update_of(
    joined: Joined,
    label: str,
    options: AnalysisOptions,
    *,
    before: str | None = None,
    level: float | None = None,
    side: Side = "two-sided",
    chance: float | None = None,
) -> Update:
    """A model against the old one (or the one named ``before``) on the items of a task."""
    old = before or joined.labels[0]
    theirs, own = joined.answers[old], joined.answers[label]
    runs = joined.runs if joined.kind == "correct" else {}
    return Update(
        before=joined.values[old],
        after=joined.values[label],
        kind=joined.kind,
        epsilon=options.epsilon,
        answers=None if theirs is None or own is None else (theirs, own),
        choice=joined.choice,
        chance=chance,
        runs=(runs[old], runs[label]) if old in runs and label in runs else None,
        clusters=None if options.cluster is None else joined.columns[options.cluster][0],
        level=options.level if level is None else level,
        side=side,
        seed=options.seed,
    )


def count_repeats(joined: Joined, how: str) -> Joined:
    """A task whose items have the value that is asked for.

    ``mean``: the rate of right answers. ``majority``: right if more than half of the answers are. ``pass@K``: how
    likely one of K answers is right, by the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374, equation 1).
    """
    if not joined.runs or how == "mean":
        return joined
    if joined.kind == "score":
        raise MuscleError(f"task {joined.task!r} has scores, which only their mean counts; leave out --repeats {how}")
    if how == "majority":
        return dataclasses.replace(
            joined, values={label: (value > 0.5) * 1.0 for label, value in joined.values.items()}, runs={}
        )
    k = int(how.removeprefix("pass@"))
    values = {label: _pass_at(runs, k) for label, runs in joined.runs.items()}
    short = [label for label, runs in joined.runs.items() if (~np.isnan(runs)).sum(1).min() < k]
    if short or len(values) < len(joined.values):
        raise MuscleError(f"task {joined.task!r}: {how} needs {k} answers to every item from every model")
    return dataclasses.replace(joined, values=values)


def _pass_at(runs: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    n, right = (~np.isnan(runs)).sum(1), np.nansum(runs, 1)
    return 1 - comb(n - right, k) / np.maximum(comb(n, k), 1)


def sample(joined: Joined) -> list[int]:
    """Numbers of evenly spread items, all of a small task."""
    items = len(joined.ids)
    return np.unique(np.linspace(0, items - 1, min(items, _SAMPLE)).astype(int)).tolist()


def chance_of(joined: Joined) -> float | None:
    """How often a guess is right, where the logs tell the choices."""
    if not joined.choice or joined.kind != "correct":
        return None
    details = joined.details(joined.labels[0], sample(joined))
    sizes = [len(detail.choices) for detail in details]
    return float(np.mean([1 / size for size in sizes])) if sizes and min(sizes) > 1 else None


def flaky_share(runs: NDArray[np.float64]) -> float:
    """Share of items whose runs are now right, now wrong; runs of shape ``(items, runs)``, nan for none."""
    rate = np.nanmean(runs, axis=1)
    return float(np.mean((rate > 0) & (rate < 1)))


def measures(joined: Joined, label: str, options: AnalysisOptions) -> list[d.Measure]:
    """What answers take: their length, and the columns of numbers about cost that both models' logs have."""
    old = joined.labels[0]
    ours, theirs = joined.own_columns[old], joined.own_columns.get(label, {})
    pairs = {
        name: tuple(numbers_of(values)[codes] for codes, values in (own[name] for own in (ours, theirs)))
        for name in ours
        if _COST.search(name) and name in theirs
    }
    if not joined.choice:
        pairs["answer length (characters)"] = tuple(_lengths(joined, name) for name in (old, label))
    found = []
    for name, (before, after) in pairs.items():
        known = ~np.isnan(before) & ~np.isnan(after)
        if known.sum() > 1 and (before[known] != after[known]).any():
            change = mean_change((after - before)[known], level=options.level, seed=options.seed)
            means = float(before[known].mean()), float(after[known].mean())
            found.append(d.Measure(name, *means, change, int(known.sum())))
    return found


def _lengths(joined: Joined, label: str) -> NDArray[np.float64]:
    details = joined.details(label, sample(joined))
    return np.array([math.nan if row.answer is None else float(len(row.answer)) for row in details])


def numbers_of(values: Sequence[Any]) -> NDArray[np.float64]:
    """The values of a column as numbers, in CSV files too, nan for what is none; and nan for code -1."""
    numbers = np.full(len(values) + 1, math.nan)
    for place, value in enumerate(values):
        with contextlib.suppress(TypeError, ValueError):
            numbers[place] = float(value)
    return numbers


class TaskAnalysis:
    """The numbers of one task; p-values are corrected when those of all tasks are known (:func:`correct_tasks`)."""

    def __init__(self, joined: Joined, models: Sequence[d.Model], options: AnalysisOptions) -> None:
        self.joined, self.models, self.options = joined, models, options
        self.chance = chance_of(joined)

    def against(self, label: str) -> Update:
        """A model against the old one."""
        return update_of(self.joined, label, self.options, chance=self.chance)

    def result(self) -> d.TaskResult:
        """Everything but the slices and the list of flips."""
        joined = self.joined
        old = self.against(joined.labels[0])
        return d.TaskResult(
            name=joined.task,
            metric=joined.metric,
            kind=joined.kind,
            items=len(joined.ids),
            accuracy_old=old.quality(old.before),
            updates=[self._update(model) for model in self.models[1:]],
            left_out=joined.left_out,
            missing=joined.missing,
            reworded=joined.reworded,
            doubt=joined.doubt,
            chance=self.chance,
            runs=max((runs.shape[1] for runs in joined.runs.values()), default=1),
            flaky={label: flaky_share(runs) for label, runs in joined.runs.items() if runs.shape[1] > 1},
        )

    def _update(self, model: d.Model) -> d.Update:
        found = self.against(model.label)
        change, p_value = found.change, found.p_value
        return d.Update(
            label=model.label,
            role=model.role,
            accuracy=found.quality(found.after),
            change=change,
            counts=found.counts,
            rates=found.rates(),
            p_value=p_value,
            p_adjusted=p_value,
            verdict=verdict(change.value, p_value, self.options.level),
            against_new=None if model.role == "new" else self._against_new(found),
            nfr_by_chance=found.permuted[1] if found.by_runs else None,
            measures=measures(self.joined, model.label, self.options),
        )

    def _against_new(self, compat: Update) -> d.AgainstNew:
        new = self.against(self.joined.labels[1])
        change = dataclasses.replace(compat, before=new.after).change
        deltas = compat.mean(compat.loss - new.loss), compat.mean(compat.gain - new.gain), change
        return against_new(new.nfr.value, deltas, kept(new, compat).p_value, _flows(new, compat), self.options.level)


def kept(new: Update, compat: Update) -> Update:
    """From the plain update to a compatibility model, what is not lost of the old model: its change is -delta NFR."""
    kind = "score" if compat.rated else "correct"
    losses = {"before": 1.0 - new.loss, "after": 1.0 - compat.loss}
    return dataclasses.replace(compat, **losses, kind=kind, runs=None, answers=None)


def against_new(
    nfr: float, deltas: Sequence[Estimate], p_value: float, flows: list[d.Flow], level: float
) -> d.AgainstNew:
    """A compatibility model against the plain update, whose NFR is ``nfr``; by changes of NFR, PFR and accuracy."""
    delta_nfr, delta_pfr, change = deltas
    return d.AgainstNew(
        delta_nfr=delta_nfr,
        delta_nfr_percent=100 * delta_nfr.value / nfr if nfr else math.nan,
        delta_pfr=delta_pfr,
        delta_accuracy=change,
        p_value=p_value,
        p_adjusted=p_value,
        verdict=verdict(-delta_nfr.value, p_value, level),
        flows=flows,
    )


def _flows(new: Update, compat: Update) -> list[d.Flow]:
    if new.kind == "correct":
        names: tuple[tuple[str, ...], ...] = (("wrong", "right"),) * 3
        codes = [right.astype(np.int64) for right in (*new.right, compat.right[1])]
    else:
        names = (("start",), OUTCOMES["score"], OUTCOMES["score"])
        codes = [np.zeros(len(new.before), dtype=np.int64), *(u.codes.astype(np.int64) for u in (new, compat))]
    sizes = [len(states) for states in names]
    joint = np.bincount(np.ravel_multi_index(codes, sizes), minlength=math.prod(sizes)).tolist()
    return [d.Flow((old, mid, last), n) for (old, mid, last), n in zip(itertools.product(*names), joint, strict=True)]


def correct_tasks(tasks: Sequence[d.TaskResult], level: float) -> list[d.TaskResult]:
    """Holm's correction over the tasks, separately for each model and for "against old" and "against new"."""
    columns = []
    for updates in zip(*(task.updates for task in tasks), strict=True):
        held = _corrected([update.against_new for update in updates], level)
        both = zip(_corrected(updates, level), held, strict=True)
        columns.append([dataclasses.replace(update, against_new=versus) for update, versus in both])
    return [dataclasses.replace(task, updates=[column[i] for column in columns]) for i, task in enumerate(tasks)]


def _corrected(tests: Sequence[Any], level: float) -> list[Any]:
    """Updates, or what holds one against another, with p-values and verdicts that hold together."""
    adjusted = holm([math.nan if test is None else test.p_value for test in tests]).tolist()
    return [
        test
        and dataclasses.replace(test, p_adjusted=p, verdict=test.verdict if p < 1 - level else "no difference shown")
        for test, p in zip(tests, adjusted, strict=True)
    ]
