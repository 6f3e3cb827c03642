"""May this update ship? Limits held against one-sided bounds, not against points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from muscle_hf.compare.analyse import AnalysisOptions, update_of
from muscle_hf.compare.document import Gate, GateCheck, GateVerdict, NoiseFloor, TaskResult, Update, worst_verdict
from muscle_hf.compare.join import Joined
from muscle_hf.compare.totals import average, base_name
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, read_yaml, readable
from muscle_hf.metrics.intervals import Estimate, Side
from muscle_hf.metrics.power import items_for_change, items_for_rate
from muscle_hf.words import did_you_mean

RULES = ("max_nfr", "max_regression", "min_accuracy_gain")
_DIFFERENCES = ("max_regression", "min_accuracy_gain")
_ALL = "*"


@dataclass
class Budget:
    """Limits by rule and task.

    Args:
        limits: Rule -> task (``*`` for every other task) -> limit: a fraction, but for ``max_regression`` and
            ``min_accuracy_gain`` of a task with scores a difference of their means, in the unit of the scores.
        level: Confidence of the one-sided bounds.
        source: File that the limits came from.
        baseline: Earlier comparison (``--json`` output) whose negative flip rates are limits too.
        noise: Task -> negative flip rate of re-running the same model.
    """

    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    level: float = 0.95
    source: str | None = None
    baseline: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to decide."""
        return not any(self.limits.values()) and not self.baseline

    def check_level(self) -> None:
        """Refuses levels below one half, at which bounds are on the wrong side of what was measured."""
        if not 0.5 <= self.level < 1:
            raise MuscleError(f"the level of a gate must lie between 0.5 and 1, for example 0.95; got {self.level}")

    def limit(self, rule: str, task: str) -> float | None:
        """The limit of a rule for a task: the task's own, that of the task without its filter, or the general one."""
        table = self.limits.get(rule, {})
        return next((table[name] for name in (task, base_name(task), _ALL) if name in table), None)


def _number(value: Any, where: str) -> float:
    """A number of a file or of the command line, which may be in percent."""
    try:
        percent = isinstance(value, str) and value.endswith("%")
        number = float(value.rstrip("%")) / 100 if percent else float(value)
        if not isinstance(value, bool) and math.isfinite(number):
            return number
    except (TypeError, ValueError):
        pass
    raise MuscleError(f"{where}: {value!r} is not a number; write 0.02 or 2% for two percent")


def _limit(rule: str, value: Any, where: str) -> float:
    number = _number(value, where)
    # Of what unit a difference is, only the task knows, which is not read yet.
    if (number < 0 and rule != "min_accuracy_gain") or (number > 1 and rule not in _DIFFERENCES):
        allowed = "must not be negative" if rule in _DIFFERENCES else "is not a fraction between 0 and 1"
        raise MuscleError(f"{where}: {value!r} {allowed}; write 0.02 or 2% for two percent")
    return number


def read_budget(path: str) -> Budget:
    """Reads a budget file, YAML or JSON: the rules ``max_nfr``, ``max_regression``, ``min_accuracy_gain``
    (:attr:`Budget.limits`), each for all tasks at the top and for single tasks under ``tasks: NAME:``; and optionally
    ``level`` and ``noise`` (task -> noise floor). An entry that is not known is refused."""
    return budget_of(read_yaml(path, "budget file"), path)


def budget_of(data: Any, path: str) -> Budget:
    """As :func:`read_budget`, of a file's content or a part of one; ``path`` is what messages call it."""
    _check_names(path, data, (*RULES, "level", "noise", "tasks"))
    noise, tasks = data.get("noise") or {}, data.get("tasks") or {}
    if not isinstance(noise, Mapping) or not isinstance(tasks, Mapping):
        raise MuscleError(f"{path}: 'noise' and 'tasks' must be tables by the names of tasks")
    budget = Budget(limits={rule: {} for rule in RULES}, source=path)
    budget.level = _number(data.get("level", budget.level), f"{path}: level")
    budget.noise = {str(task): _limit("noise", rate, f"{path}: noise") for task, rate in noise.items()}
    sections = {_ALL: {rule: data[rule] for rule in RULES if rule in data}}
    for task, limits in tasks.items():
        _check_names(f"{path}, task {task}", limits or {}, RULES)
        sections[str(task)] = limits or {}
    for task, limits in sections.items():
        for rule, value in limits.items():
            budget.limits[rule][task] = _limit(rule, value, f"{path}: {rule}")
    return budget


def _check_names(where: str, table: Any, known: Sequence[str]) -> None:
    if not isinstance(table, Mapping):
        raise MuscleError(f"{where}: expected a table of limits such as 'max_nfr: 0.02', found {table!r}")
    for name in table:
        if name not in known:
            raise MuscleError(f"{where}: unknown entry {name!r}; {did_you_mean(name, known)}")


def read_baseline(path: str) -> dict[str, dict[str, Estimate]]:
    """Negative flip rates of an earlier comparison, its ``--json`` file: task -> model label -> estimate."""
    data = read_json(path, "baseline file")
    with readable(f"{path}, a comparison as a baseline,", "; muscle-hf compare --json writes one"):
        rates = {
            task["name"]: {
                update["label"]: Estimate(**(update["rates"].get("nfr") or update["rates"]["nfr_smooth"]))
                for update in task["updates"]
            }
            for task in data["tasks"]
        }
        if any(rate.high is None for table in rates.values() for rate in table.values()):
            raise ValueError("it compares no items")
        return rates


def check_gate(
    joined: Sequence[Joined],
    tasks: Sequence[TaskResult],
    candidates: Sequence[str],
    budget: Budget,
    options: AnalysisOptions,
    *,
    totals: Sequence[TaskResult] = (),
    noise: Sequence[NoiseFloor] = (),
) -> Gate | None:
    """Holds every limit against every candidate; None if there are no limits.

    A limit for the name of one of the ``totals`` is held against the mean over its tasks. Given noise floors win over
    those noted in the budget. A limit for a task that was not compared, or beyond what an accuracy can be, is refused.
    """
    if budget.empty and budget.source:
        raise MuscleError(f"{budget.source} has no limits; write for example 'max_nfr: 2%'")
    if budget.empty:
        return None
    budget.check_level()
    results = [*totals, *tasks]
    names = {name for task in results for name in (task.name, base_name(task.name))}
    for rule, table in budget.limits.items():
        for task in table:
            if task not in names and task != _ALL:
                listed = ", ".join(sorted(names))
                raise MuscleError(f"{rule} is limited for task {task!r}, which was not compared; there are {listed}")
    if budget.baseline and not budget.baseline.keys() & names:
        raise MuscleError(f"of the baseline's tasks, {', '.join(budget.baseline)}, none was compared")
    floors = budget.noise | {floor.task: floor.nfr.value for floor in noise}
    checks = []
    for task in results:
        members = [items for items in joined if items.task in (task.tasks or [task.name])]
        for update in task.updates:
            if update.label in candidates:
                checks += _Judge(task, update, budget, floors.get(task.name), members, options).checks()
    if not checks:
        raise MuscleError("none of the limits applies to a task that was compared")
    return Gate(worst_verdict(check.verdict for check in checks), checks, budget.source)


@dataclass(frozen=True)
class _Judge:
    """Holds the limits of a task, or of the total of its ``members``, against one updated model."""

    task: TaskResult
    update: Update
    budget: Budget
    floor: float | None
    members: Sequence[Joined]
    options: AnalysisOptions

    def checks(self) -> list[GateCheck]:
        name, limits = self.task.name, self.budget.limits
        graded = self.task.kind == "correct"
        quality, flips = ("accuracy", "NFR") if graded else (f"the mean {self.task.metric}", "NFR~")
        wanted = {
            "max_nfr": ("nfr", flips),
            "max_regression": ("change", f"the fall of {quality}"),
            "min_accuracy_gain": ("change", f"the gain of {quality}"),
        }
        found = []
        for rule, what in wanted.items():
            # A limit for every task is none for their total.
            limit = limits.get(rule, {}).get(name) if self.task.tasks else self.budget.limit(rule, name)
            if limit is not None:
                found.append(self._check(rule, limit, *what))
        if before := self.budget.baseline.get(name):
            # Without a model of the same label the baseline's last one is what was shipped.
            earlier = before.get(self.update.label) or list(before.values())[-1]
            found.append(self._check("baseline", earlier.high, "nfr", f"{flips} (baseline: {earlier.value:.2%})"))
        return found

    def _bound(self, side: Side, name: str, swapped: bool) -> Estimate:
        found = []
        for items in self.members:
            before, after = items.labels[0], self.update.label
            before, after = (after, before) if swapped else (before, after)
            update = update_of(items, after, self.options, before=before, level=self.budget.level, side=side)
            found.append(getattr(update, name))
        return found[0] if len(found) == 1 else average(found, self.options.cluster is not None, side)

    def _check(self, rule: str, limit: float, name: str, what: str) -> GateCheck:
        task, cluster, level = self.task, self.options.cluster, self.budget.level
        if task.kind == "correct" and rule in _DIFFERENCES and abs(limit) > 1:
            raise MuscleError(
                f"{rule} of task {task.name!r} is {limit:g}, but accuracies are fractions; write {limit / 100:g} or "
                f"{limit:g}%, or limit the tasks with scores by their names"
            )
        high, low = (self._bound(side, name, rule == "max_regression") for side in ("upper", "lower"))
        upper = rule != "min_accuracy_gain"
        kept, broken = (high.high <= limit, low.low > limit) if upper else (low.low >= limit, high.high < limit)
        # What is resampled: items, or whole sources.
        units = [
            len(items.ids if cluster is None else set(items.columns[cluster][0].tolist())) for items in self.members
        ]
        few = min(units) < _FEWEST and high.method in ("bca", "percentile")
        unsure = task.doubt or few or not (kept or broken)
        verdict: GateVerdict = "too little data" if unsure else "pass" if kept else "fail"
        # What a failed limit is beyond for sure is the other side's bound.
        at_most = upper != (verdict == "fail")
        bound, edge = (high, high.high) if at_most else (low, low.low)
        unit = ".2%" if task.kind == "correct" or rule not in _DIFFERENCES else ".4g"
        message = task.doubt or (
            f"{what} is {bound.value:{unit}}, {'at most' if at_most else 'at least'} {edge:{unit}} with "
            f"{100 * level:g}% confidence; the limit is {limit:{unit}}"
        )
        if unjudged := sum(sum(kinds.values()) for kinds in task.missing.values()):
            message += f"; {unjudged:,} answers are missing ({'left out' if task.left_out else 'counted as wrong'})"
        # The floor is one of flips, not of differences.
        noise = None if rule in _DIFFERENCES else self.floor
        if noise is not None and limit < noise:
            message += f", which is below the noise floor of {noise:.2%}"
        needed = None
        if verdict == "too little data" and not (task.doubt or task.tasks) and task.kind == "correct":
            needed = self._items_needed(rule, limit, bound.value)
            message += (
                "; it was measured at the limit itself, which no number of items decides"
                if needed is None
                else f"; about {max(needed, task.items + 1):,} items would decide it if it is as measured (power 80%)"
            )
        return GateCheck(
            rule, task.name, self.update.label, limit, bound, verdict, message, noise, task.kind, items_needed=needed
        )

    def _items_needed(self, rule: str, limit: float, value: float) -> int | None:
        """Items that would decide a limit if what was measured is so."""
        if rule not in _DIFFERENCES:
            return items_for_rate(limit, value, level=self.budget.level)
        flips = self.update.rates["nfr"].value + self.update.rates["pfr"].value
        return items_for_change(limit, value, flips, level=self.budget.level)


# Fewer items (sources) than this say nothing of how others would spread.
_FEWEST = 8
# Of a limit, what an update may be expected to use of it.
_USED = (0.0, 0.25, 0.5, 0.75)


def plan_items(budget: Budget, flips: float = 0.1) -> list[tuple[str, str, float, float, int | None]]:
    """How many items each limit needs, before anything is run; ``flips`` is the share of items that flip either way,
    which a limit on the change of accuracy depends on.

    Gives rule, task (``*``: every task), limit, what is expected of the update, and the items that then decide with a
    power of 80 %.
    """
    rows = []
    for rule, table in budget.limits.items():
        for task, limit in table.items():
            for used in _USED:
                if rule == "max_nfr":
                    expected = used * limit
                    needed = items_for_rate(limit, expected, level=budget.level)
                else:  # a gain of at least x is a fall of at most -x
                    sign = -1 if rule == "min_accuracy_gain" else 1
                    fall = sign * limit - (1 - used) * max(abs(limit), 0.01)
                    expected = sign * fall
                    needed = items_for_change(sign * limit, fall, max(flips, abs(fall)), level=budget.level)
                rows.append((rule, task, limit, expected, needed))
    return rows


def with_limits(budget: Budget, given: Mapping[str, Sequence[str]], level: float | None) -> Budget:
    """A budget with the limits of the command line (``0.02``, ``2%`` or ``TASK=0.02``) on top of those of its file."""
    for rule, texts in given.items():
        table = budget.limits.setdefault(rule, {})
        for text in texts:
            task, _, number = text.rpartition("=")
            table[task or _ALL] = _limit(rule, number, "--" + rule.replace("_", "-"))
    if level is not None:
        budget.level = level
    budget.check_level()
    return budget
