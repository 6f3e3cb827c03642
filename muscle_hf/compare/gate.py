"""May this update ship? Limits held against one-sided bounds, not against points."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muscle_hf.compare.analyse import AnalysisOptions, update_of
from muscle_hf.compare.document import Gate, GateCheck, GateVerdict, NoiseFloor, TaskResult, Update, worst_verdict
from muscle_hf.compare.join import Joined
from muscle_hf.compare.totals import average, base_name
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, read_yaml
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
        """Refuses levels below one half, at which bounds are on the wrong side of what was measured.

        Raises:
            MuscleError: Says so.
        """
        if not 0.5 <= self.level < 1:
            raise MuscleError(f"the level of a gate must lie between 0.5 and 1, for example 0.95; got {self.level}")

    def limit(self, rule: str, task: str) -> float | None:
        """The limit of a rule for a task: the task's own, that of the task without its filter, or the general one."""
        table = self.limits.get(rule, {})
        return next((table[name] for name in (task, base_name(task), _ALL) if name in table), None)


def parse_limit(rule: str, text: str, where: str) -> tuple[str, float]:
    """One limit of the command line: ``0.02``, ``2%`` or ``TASK=0.02``.

    Args:
        rule: One of :data:`RULES`.
        text: The limit.
        where: What messages call the place it was given.

    Raises:
        MuscleError: It is not a number, or out of range.
    """
    task, _, number = text.rpartition("=")
    try:
        value = float(number.rstrip("%")) / (100 if number.endswith("%") else 1)
    except ValueError:
        raise MuscleError(f"{where}: {text!r} must be a number like 0.02 or 2%, or TASK=NUMBER") from None
    return task or _ALL, _checked(rule, value, where)


def _checked(rule: str, value: Any, where: str) -> float:
    if isinstance(value, str) and value.endswith("%"):
        return parse_limit(rule, value, where)[1]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise MuscleError(f"{where}: {value!r} is not a number; write 0.02 or 2% for two percent")
    low = -math.inf if rule == "min_accuracy_gain" else 0.0
    # Of what unit a difference is, only the task knows, which is not read yet.
    high = math.inf if rule in _DIFFERENCES else 1.0
    if not low <= value <= high:
        allowed = "must not be negative" if high > 1 else "is not a fraction between 0 and 1"
        raise MuscleError(f"{where}: {value!r} {allowed}; write 0.02 or 2% for two percent")
    return float(value)


def read_budget(path: str) -> Budget:
    """Reads a budget file, YAML or JSON.

    It has the rules ``max_nfr``, ``max_regression``, ``min_accuracy_gain`` (:attr:`Budget.limits`), each for all tasks
    at the top and for single tasks under ``tasks: NAME:``; and optionally ``level`` and ``noise`` (task -> noise
    floor).

    Raises:
        MuscleError: The file is missing, not YAML, or has an entry that is not known.
    """
    return budget_of(read_yaml(path, "budget file"), path)


def budget_of(data: Any, path: str) -> Budget:
    """The budget that a file's content, or a part of one, gives; ``path`` is what messages call it.

    Raises:
        MuscleError: As of :func:`read_budget`.
    """
    if not isinstance(data, dict):
        raise MuscleError(f"{path} must be a table of limits such as 'max_nfr: 0.02'")
    budget = Budget(limits={rule: {} for rule in RULES}, source=path)
    _check_names(path, data, (*RULES, "level", "noise", "tasks"))
    budget.level = data.get("level", budget.level)
    if isinstance(budget.level, bool) or not isinstance(budget.level, (int, float)):
        raise MuscleError(f"{path}: level must be a number such as 0.95, not {budget.level!r}")
    noise, tasks = data.get("noise") or {}, data.get("tasks") or {}
    if not isinstance(noise, Mapping) or not isinstance(tasks, Mapping):
        raise MuscleError(f"{path}: 'noise' and 'tasks' must be tables by the names of tasks")
    budget.noise = {str(task): _checked("noise", rate, f"{path}: noise") for task, rate in noise.items()}
    sections = {_ALL: {rule: data[rule] for rule in RULES if rule in data}}
    for task, limits in tasks.items():
        _check_names(f"{path}, task {task}", limits or {}, RULES)
        sections[str(task)] = limits or {}
    for task, limits in sections.items():
        for rule, value in limits.items():
            budget.limits[rule][task] = _checked(rule, value, f"{path}: {rule}")
    return budget


def _check_names(where: str, table: Any, known: Sequence[str]) -> None:
    if not isinstance(table, Mapping):
        raise MuscleError(f"{where}: expected a table of limits, found {table!r}")
    for name in table:
        if name not in known:
            raise MuscleError(f"{where}: unknown entry {name!r}; {did_you_mean(name, known)}")


def read_baseline(path: str) -> dict[str, dict[str, Estimate]]:
    """Negative flip rates of an earlier comparison (its ``--json`` file): task -> model label -> estimate.

    Raises:
        MuscleError: The file is missing or not such a comparison.
    """
    data = read_json(path, "baseline file")
    try:
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MuscleError(
            f"{path} is not a comparison as --json writes it ({error.__class__.__name__}: {error})"
        ) from error


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
    """Holds every limit against every candidate.

    Args:
        joined: The items of each task.
        tasks: The results of the same tasks.
        candidates: Labels of the updated models that would ship.
        budget: The limits.
        options: Clusters and epsilon.
        totals: Of several tasks; limits under their names are held against the mean over their tasks.
        noise: Measured noise floors; they win over those noted in the budget.

    Returns:
        None if there are no limits.

    Raises:
        MuscleError: A limit names a task that was not compared, or asks an accuracy for more than a fraction.
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
        _require_fractions(task, budget)
        members = [items for items in joined if items.task in (task.tasks or [task.name])]
        for label in (update.label for update in task.updates if update.label in candidates):
            checks += _checks(task, label, budget, floors.get(task.name), members, options)
    if not checks:
        raise MuscleError("none of the limits applies to a task that was compared")
    return Gate(worst_verdict(check.verdict for check in checks), checks, budget.source)


def _require_fractions(task: TaskResult, budget: Budget) -> None:
    for rule in _DIFFERENCES:
        limit = budget.limit(rule, task.name)
        if task.kind == "correct" and limit is not None and abs(limit) > 1:
            raise MuscleError(
                f"{rule} of task {task.name!r} is {limit:g}, but accuracies are fractions; write {limit / 100:g} or "
                f"{limit:g}%, or limit the tasks with scores by their names"
            )


def _checks(
    task: TaskResult,
    label: str,
    budget: Budget,
    floor: float | None,
    members: Sequence[Joined],
    options: AnalysisOptions,
) -> list[GateCheck]:
    graded = task.kind == "correct"
    quality, flips = ("accuracy", "NFR") if graded else (f"the mean {task.metric}", "NFR~")

    def bound(side: Side, name: str, swapped: bool) -> Estimate:
        found = []
        for items in members:
            after, before = (items.labels[0], label) if swapped else (label, items.labels[0])
            update = update_of(items, after, options, before=before, level=budget.level, side=side)
            found.append(getattr(update, name))
        return found[0] if len(found) == 1 else average(found, options.cluster is not None, side)

    # What is resampled: items, or whole sources.
    cluster = options.cluster
    units = [len(items.ids if cluster is None else set(items.columns[cluster][0].tolist())) for items in members]

    def check(rule: str, limit: float, name: str, what: str) -> GateCheck:
        upper = rule != "min_accuracy_gain"
        high, low = (bound(side, name, rule == "max_regression") for side in ("upper", "lower"))
        few = min(units) < _FEWEST and high.method in ("bca", "percentile")
        found = _decide(task, label, rule, limit, (high, low), upper, what, budget.level, floor, few)
        if found.verdict != "too little data" or task.doubt or task.tasks or not graded:
            return found
        update = next(u for u in task.updates if u.label == label)
        needed, words = _items_needed(update, found, budget.level, task.items)
        return replace(found, items_needed=needed, message=found.message + words)

    limits = {rule: budget.limit(rule, task.name) for rule in RULES}
    if task.tasks:  # a limit for every task is none for their total
        limits = {rule: budget.limits.get(rule, {}).get(task.name) for rule in RULES}
    wanted = {
        "max_nfr": ("nfr", flips),
        "max_regression": ("change", f"the fall of {quality}"),
        "min_accuracy_gain": ("change", f"the gain of {quality}"),
    }
    found = [check(rule, limit, *wanted[rule]) for rule, limit in limits.items() if limit is not None]
    before = budget.baseline.get(task.name)
    if before:
        # Without a model of the same label the baseline's last one is what was shipped.
        earlier = before.get(label) or list(before.values())[-1]
        found.append(check("baseline", earlier.high, "nfr", f"{flips} (baseline: {earlier.value:.2%})"))
    return found


def _items_needed(update: Update, check: GateCheck, level: float, items: int) -> tuple[int | None, str]:
    """Items that would decide a limit if what was measured is so, and what is said of them."""
    value = check.estimate.value
    if check.rule not in _DIFFERENCES:
        needed = items_for_rate(check.limit, value, level=level)
    else:
        flips = update.rates["nfr"].value + update.rates["pfr"].value
        needed = items_for_change(check.limit, value, flips, level=level)
    if needed is None:
        return None, "; it was measured at the limit itself, which no number of items decides"
    return needed, f"; about {max(needed, items + 1):,} items would decide it if it is as measured (power 80%)"


def _decide(
    task: TaskResult,
    label: str,
    rule: str,
    limit: float,
    bounds: tuple[Estimate, Estimate],
    upper: bool,
    what: str,
    level: float,
    floor: float | None,
    few: bool,
) -> GateCheck:
    """Hold a limit against the one-sided bounds, upper and lower, of what it limits."""
    unit = ".2%" if task.kind == "correct" or rule not in _DIFFERENCES else ".4g"
    high, low = bounds
    kept, broken = (high.high <= limit, low.low > limit) if upper else (low.low >= limit, high.high < limit)
    unsure = task.doubt or few or not (kept or broken)
    verdict: GateVerdict = "too little data" if unsure else "pass" if kept else "fail"
    # What a failed limit is beyond for sure is the other side's bound.
    at_most = upper != (verdict == "fail")
    bound, edge = (high, high.high) if at_most else (low, low.low)
    message = (
        f"{what} is {bound.value:{unit}}, {'at most' if at_most else 'at least'} {edge:{unit}} with "
        f"{100 * level:g}% confidence; the limit is {limit:{unit}}"
    )
    message = task.doubt or message
    unjudged = sum(sum(kinds.values()) for kinds in task.missing.values())
    if unjudged:
        message += f"; {unjudged:,} answers are missing ({'left out' if task.left_out else 'counted as wrong'})"
    # The floor is one of flips, not of differences.
    noise = None if rule in _DIFFERENCES else floor
    if noise is not None and limit < noise:
        message += f", which is below the noise floor of {noise:.2%}"
    return GateCheck(rule, task.name, label, limit, bound, verdict, message, noise, task.kind)


# Fewer items (sources) than this say nothing of how others would spread.
_FEWEST = 8
# Of a limit, what an update may be expected to use of it.
_USED = (0.0, 0.25, 0.5, 0.75)


def plan_items(budget: Budget, flips: float = 0.1) -> list[tuple[str, str, float, float, int | None]]:
    """How many items each limit needs, before anything is run.

    Args:
        budget: The limits.
        flips: Share of items that flip either way, which a limit on the change of accuracy depends on.

    Returns:
        Rule, task (``*`` for every task), limit, what is expected of the update, and the items that then decide with
        a power of 80 %, for several expectations.
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
    """A budget with the limits of the command line on top of those of its file."""
    limits = {rule: dict(budget.limits.get(rule, {})) for rule in RULES}
    for rule, texts in given.items():
        for text in texts:
            task, value = parse_limit(rule, text, "--" + rule.replace("_", "-"))
            limits[rule][task] = value
    budget.limits = limits
    if level is not None:
        budget.level = level
    budget.check_level()
    return budget
