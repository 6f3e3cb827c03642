"""All tasks together, every task weighing the same: the same numbers as those of a task, under the name ``total``."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from muscle_hf.compare import document as d
from muscle_hf.compare.analyse import AnalysisOptions, against_new, kept, update_of, verdict
from muscle_hf.compare.join import Joined
from muscle_hf.compare.lm_eval_format import base_task
from muscle_hf.metrics.intervals import Estimate, Side, mean_estimate, pooled_rate
from muscle_hf.metrics.significance import cluster_sign_test, stratified_mcnemar
from muscle_hf.metrics.update import Update

TOTAL = "total"
# Rates that have the same denominator, all items, in every task.
_RATES = ("nfr", "pfr", "nfr_adjusted", "nfr_mc", "agreement", "nfr_smooth", "pfr_smooth")


def base_name(task: str) -> str:
    """A task's name without its filter and without the metric that several metrics put behind it."""
    return base_task(re.sub(r" \[[^\]]*\]$", "", task))


def groups(joined: Sequence[Joined]) -> dict[str, list[int]]:
    """Which tasks can be put together: name of the total -> numbers of the tasks.

    Those with right and wrong answers, and those with scores of one metric. Several filters of one task are none:
    they would count it twice.
    """
    graded = [base_name(task.task) for task in joined if task.kind == "correct"]
    twice = len(set(graded)) < len(graded)  # by several metrics
    found: dict[str, list[int]] = defaultdict(list)
    for place, task in enumerate(joined):
        found["" if task.kind == "correct" and not twice else task.metric].append(place)
    several = {
        name: places
        for name, places in found.items()
        if len(places) > 1 and len({base_name(joined[place].task) for place in places}) == len(places)
    }
    return {TOTAL if not name or len(found) == 1 else f"{TOTAL} {name}": places for name, places in several.items()}


def average(estimates: Sequence[Estimate], clustered: bool = False, side: Side = "two-sided") -> Estimate:
    """The mean of the tasks' estimates with an interval: of shares Wilson's, which knows that none is below zero."""
    if not clustered and all(estimate.total is not None for estimate in estimates):
        counts, totals = ([getattr(e, name) or 0 for e in estimates] for name in ("count", "total"))
        return pooled_rate(counts, totals, level=estimates[0].level, side=side)
    return mean_estimate(estimates)


def totals_of(joined: Sequence[Joined], tasks: Sequence[d.TaskResult], options: AnalysisOptions) -> list[d.TaskResult]:
    """The total of each of the :func:`groups` of tasks, whose results are given in the same order."""
    return [
        _total(name, [joined[place] for place in places], [tasks[place] for place in places], options)
        for name, places in groups(joined).items()
    ]


def _total(
    name: str, joined: Sequence[Joined], tasks: Sequence[d.TaskResult], options: AnalysisOptions
) -> d.TaskResult:
    def mean(estimates: Sequence[Estimate]) -> Estimate:
        return average(estimates, options.cluster is not None)

    updates = []
    for column in zip(*(task.updates for task in tasks), strict=True):
        first = column[0]
        sides = [update_of(task, first.label, options) for task in joined]
        change = mean([update.change for update in column])
        p_value = _p_value(sides, options)
        shared = [key for key in _RATES if all(key in update.rates for update in column)]
        updates.append(
            d.Update(
                label=first.label,
                role=first.role,
                accuracy=mean([update.accuracy for update in column]),
                change=change,
                counts={key: sum(update.counts[key] for update in column) for key in first.counts},
                rates={key: mean([update.rates[key] for update in column]) for key in shared},
                p_value=p_value,
                p_adjusted=p_value,
                verdict=verdict(change.value, p_value, options.level),
                against_new=_against_new(column, joined, sides, options, updates),
            )
        )
    chances = [task.chance for task in tasks if task.chance is not None]
    return d.TaskResult(
        name=name,
        metric=", ".join(dict.fromkeys(task.metric for task in tasks)),
        kind=tasks[0].kind,
        items=sum(task.items for task in tasks),
        accuracy_old=mean([task.accuracy_old for task in tasks]),
        updates=updates,
        left_out=sum(task.left_out for task in tasks),
        doubt="; ".join(f"{task.name}: {task.doubt}" for task in tasks if task.doubt),
        chance=float(np.mean(chances)) if len(chances) == len(tasks) else None,
        tasks=[task.name for task in tasks],
    )


def _against_new(
    column: Sequence[d.Update],
    joined: Sequence[Joined],
    sides: Sequence[Update],
    options: AnalysisOptions,
    before: Sequence[d.Update],
) -> d.AgainstNew | None:
    held: list[d.AgainstNew] = [update.against_new for update in column if update.against_new is not None]
    if len(held) < len(column):
        return None
    pairs = zip(sides, joined, strict=True)
    against = [kept(update_of(task, task.labels[1], options), side) for side, task in pairs]
    nfr = next(before[0].rates[key].value for key in ("nfr", "nfr_smooth") if key in before[0].rates)
    deltas = [mean_estimate([getattr(h, name) for h in held]) for name in ("delta_nfr", "delta_pfr", "delta_accuracy")]
    states = [flow.states for flow in held[0].flows]
    flows = [d.Flow(way, sum(h.flows[i].items for h in held)) for i, way in enumerate(states)]
    return against_new(nfr, deltas, _p_value(against, options), flows, options.level)


def _p_value(sides: Sequence[Update], options: AnalysisOptions) -> float:
    """Of the change over all tasks: flips are coin tosses each in its own task; other changes are signs to toss."""
    sides = [side for side in sides if len(side.before)]
    if not sides:
        return 1.0
    if options.cluster is None and all(side.kind == "correct" and not side.rated for side in sides):
        return stratified_mcnemar([side.right for side in sides]).p_value
    changes = np.concatenate([(side.after - side.before) / len(side.before) for side in sides])
    codes, start = [], 0
    for side in sides:  # a source of one task is not a source of another
        own = np.arange(len(side.before)) if side.clusters is None else side.clusters
        codes.append(own + start)
        start += int(own.max()) + 1
    return cluster_sign_test(changes, np.concatenate(codes), seed=options.seed)
