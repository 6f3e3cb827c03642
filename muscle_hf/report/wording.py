"""How numbers and results are put into words, the same in every renderer."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from muscle_hf.compare.document import Document, Flip, Gate, GateCheck, Model, TaskResult, Update
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.report.text import one_line

Show = Callable[[float], str]

ABSENT = "–"
MINUS = "−"


class Judged(Protocol):
    """What was answered on a task: a :class:`TaskResult`, or another account of one."""

    @property
    def kind(self) -> str: ...

    @property
    def metric(self) -> str: ...


class Measure(NamedTuple):
    """A rate's name, its symbol, what it says in plain words, and whether it is a share (shown in percent)."""

    name: str
    symbol: str
    meaning: str
    share: bool = True


MEASURES: dict[str, Measure] = {
    "nfr": Measure("Negative flips", "NFR", "share of all items that old had right and the updated model has wrong"),
    "pfr": Measure("Positive flips", "PFR", "share of all items that old had wrong and the updated model has right"),
    "nfr_mc": Measure(
        "Changed to a wrong choice", "NFR_mc", "share of all items with a new answer that is wrong, whatever old said"
    ),
    "nfr_smooth": Measure("Got worse", "NFR~", "share of all items whose score fell"),
    "pfr_smooth": Measure("Got better", "PFR~", "share of all items whose score rose"),
    "m_r": Measure("Mean fall", "m_r", "mean loss of score over the items that got worse", share=False),
    "m_g": Measure("Mean rise", "m_g", "mean gain of score over the items that got better", share=False),
    "btc": Measure("Right answers kept", "BTC", "share of old's right answers that stay right"),
    "bec": Measure("Errors shared", "BEC", "share of the updated model's errors that old made too"),
    "nfi": Measure("Errors that are new", "NFI", "share of the updated model's errors that are negative flips"),
    "relative_nfr": Measure(
        "Relative NFR", "rel. NFR", "NFR over what two unrelated models of these accuracies would have", share=False
    ),
    "nfr_adjusted": Measure(
        "Negative flips that are no guesses",
        "NFR_adj",
        "NFR less what models of these accuracies flip by guessing among the choices (arXiv 2510.17776)",
    ),
    "agreement": Measure("Same answer", "agreement", "share of all items that both models answer alike"),
}

COUNTS: dict[str, str] = {
    "both_right": "stays right",
    "positive_flips": "positive flip",
    "both_wrong": "stays wrong",
    "negative_flips": "negative flip",
    "improved": "got better",
    "unchanged": "unchanged",
    "regressed": "got worse",
}

RULES: dict[str, str] = {
    "max_nfr": "Negative flips at most",
    "max_regression": "Regression at most",
    "min_accuracy_gain": "Accuracy gain at least",
    "baseline": "No worse than the baseline",
}

SCORE_RULES: dict[str, str] = {
    "max_nfr": "Items that got worse at most",
    "max_regression": "Fall of the mean score at most",
    "min_accuracy_gain": "Gain of the mean score at least",
}

VERDICT_MARKS: dict[str, str] = {"pass": "✓", "fail": "✗", "too little data": "?"}


def measure(key: str) -> Measure:
    """The measure behind a key of ``Update.rates``; unknown keys are shown by their own name."""
    return MEASURES.get(key, Measure(key, key, "", share=True))


def name(label: str) -> str:
    """A label from data for a heading or a sentence: on one line, not too long; names differ most at their ends."""
    return one_line(label, 60, middle=True)


def count(number: int) -> str:
    """``12345`` -> ``12,345``."""
    return f"{number:,}"


def percent(value: float | None) -> str:
    """``0.145`` -> ``14.5%``; below 1 % with two digits, as flips of large test sets are rare."""
    return _shown(value, lambda v: f"{100 * v:.{1 if abs(v) >= 0.01 or v == 0 else 2}f}%")


def points(value: float | None) -> str:
    """A difference of two shares in percentage points: ``0.11`` -> ``+11.0 pts``."""
    return _shown(value, lambda v: f"{100 * v:+.{1 if abs(v) >= 0.01 or v == 0 else 2}f} pts")


def decimal(value: float | None) -> str:
    """A number without a unit, three digits: a score, a ratio."""
    return _shown(value, "{:.3f}".format)


def signed_decimal(value: float | None) -> str:
    """A difference of two scores."""
    return _shown(value, "{:+.3f}".format)


def _shown(value: float | None, show: Show) -> str:
    return ABSENT if value is None or not math.isfinite(value) else show(value).replace("-", MINUS)


def tick(text: str) -> str:
    """A number on an axis: without a zero after the point, zero without a sign."""
    text = re.sub(r"(\.\d*?)0+(?=\D|$)", r"\1", text).replace(".%", "%").replace(". pts", " pts").removesuffix(".")
    return re.sub(r"^[+−](?=0(\D|$))", "", text)


def p_value(value: float | None) -> str:
    """``0.0183`` -> ``0.018``; tiny ones as ``<0.001``."""
    if value is None or not math.isfinite(value):
        return ABSENT
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def p_equals(value: float | None) -> str:
    """``p = 0.018`` or ``p < 0.001``, not to be broken over lines."""
    text = p_value(value)
    return f"p\u00a0<\u00a0{text[1:]}" if text.startswith("<") else f"p\u00a0=\u00a0{text}"


def interval(estimate: Estimate, show: Show = percent) -> str:
    """``[10.3, 20.0]`` in the unit of the value; one-sided as ``≤ 20.0%`` or ``≥ 10.3%``; empty if there is none."""
    low, high = estimate.low, estimate.high
    if math.isfinite(low) and math.isfinite(high):
        return "[{},\u00a0{}]".format(*(show(end).removesuffix("%").removesuffix(" pts") for end in (low, high)))
    if math.isfinite(high):
        return f"≤ {show(high)}"
    return f"≥ {show(low)}" if math.isfinite(low) else ""


def with_interval(estimate: Estimate, show: Show = percent) -> str:
    """``14.5% [10.3, 20.0]``."""
    return f"{show(estimate.value)} {interval(estimate, show)}".strip()


def level_name(estimate: Estimate) -> str:
    """``95%``."""
    return f"{100 * estimate.level:g}%"


def quality(task: Judged) -> str:
    """What a task's answers are measured by: ``accuracy``, or ``mean rouge1``."""
    return "accuracy" if task.kind == "correct" else f"mean {task.metric}"


def show_quality(task: Judged) -> Show:
    """Formatter of a task's accuracy or mean score."""
    return percent if task.kind == "correct" else decimal


def show_change(task: Judged) -> Show:
    """Formatter of a difference of accuracies or mean scores."""
    return points if task.kind == "correct" else signed_decimal


def show_rate(key: str) -> Show:
    """Formatter of the rate with this key."""
    return percent if measure(key).share else decimal


def negative_key(task: Judged) -> str:
    """Key of the task's negative flip rate in ``Update.rates``."""
    return "nfr" if task.kind == "correct" else "nfr_smooth"


def negative_rate(task: TaskResult, update: Update) -> Estimate | None:
    """The update's negative flip rate, smooth or not."""
    return update.rates.get(negative_key(task))


def negatives(task: TaskResult, update: Update) -> int:
    """Number of negative flips (of items that got worse, for scores)."""
    return update.counts.get("negative_flips" if task.kind == "correct" else "regressed", 0)


def positives(task: TaskResult, update: Update) -> int:
    """Number of positive flips (of items that got better, for scores)."""
    return update.counts.get("positive_flips" if task.kind == "correct" else "improved", 0)


def summary(task: TaskResult, update: Update) -> str:
    """One plain sentence about an update on a task; the label is left to the caller, who must escape it."""
    down, up = count(negatives(task, update)), count(positives(task, update))
    if task.kind == "correct":
        flips = f"breaks {down} answers that were right ({percent(negatives(task, update) / max(task.items, 1))})"
        flips += f" and repairs {up}"
    else:
        flips = f"scores lower on {down} items and higher on {up}"
    change = show_change(task)(update.change.value)
    return f"{flips}; {quality(task)} {change} ({update.verdict}, {p_equals(update.p_adjusted)})."


def rule_text(check: GateCheck) -> str:
    """The limit of a check in words: ``Negative flips at most 2.0%``."""
    words = RULES.get(check.rule, check.rule)
    if check.kind == "score":
        words = SCORE_RULES.get(check.rule, words)
    return limit_text(check.rule, words, show_limited(check)(check.limit))


def limit_text(rule: str, words: str, limit: str) -> str:
    """A rule's words with its limit; a regression is told without its sign."""
    return f"{words} {limit.removeprefix('+') if rule == 'max_regression' else limit}"


def decisive(check: GateCheck) -> Estimate:
    """The estimate of a check with the bound that decides alone: of a failed limit, the side that is beyond it."""
    upper = (check.rule != "min_accuracy_gain") != (check.verdict == "fail")
    return replace(check.estimate, low=-math.inf) if upper else replace(check.estimate, high=math.inf)


def show_limited(check: GateCheck) -> Show:
    """Formatter of what a check limits: a rate, or a difference."""
    if check.rule not in {"min_accuracy_gain", "max_regression"}:
        return percent
    return points if check.kind == "correct" else signed_decimal


def most_lost(task: TaskResult) -> float:
    """What tasks are sorted by, for those that lose most to come first."""
    return min(update.change.value for update in task.updates)


def worst_flips(task: TaskResult, limit: int) -> list[Flip]:
    """The first ``limit`` flips that any updated model makes worse, in the document's order (the worst first)."""
    worse = (flip for flip in task.flips if not {"negative", "regressed"}.isdisjoint(flip.outcomes.values()))
    return list(itertools.islice(worse, limit))


def answer_mark(flip: Flip, label: str) -> str:
    """``✓`` right, ``✗`` wrong, a score, or nothing if unknown."""
    correct, score = flip.correct.get(label), flip.scores.get(label)
    if correct is not None:
        return "✓" if correct else "✗"
    return "" if score is None else decimal(score)


def eligible(task: TaskResult) -> list[Update]:
    """What could be shipped: no control, nothing worse than the old model beyond chance, nothing unmeasured."""
    return [
        update
        for update in task.updates
        if update.role != "control" and update.verdict != "worse" and math.isfinite(update.accuracy.value)
    ]


def chance_words(task: TaskResult) -> str:
    """What a guess would reach, where it is known."""
    return "" if task.chance is None else f"A guess is right in {percent(task.chance)}."


def advice(document: Document, task: TaskResult) -> str:
    """Which candidate to ship, on this task alone, in plain words; labels in it are from data, to be escaped."""
    flips = "negative flips" if task.kind == "correct" else "items that got worse"
    candidates = [update for update in task.updates if update.role != "control"]
    flipped = {update.label: found for update in task.updates if (found := negative_rate(task, update)) is not None}
    fit = [update for update in eligible(task) if update.label in flipped]
    old = name(document.models[0].label)
    if not task.items or not candidates:
        return "There is nothing to compare."
    if task.doubt:
        return "What is right and wrong here cannot be trusted, so nothing is recommended."
    if not fit:
        which = name(candidates[0].label) if len(candidates) == 1 else "Every candidate"
        return f"{which} is worse than {old} beyond chance: keep {old}. {chance_words(task)}".strip()
    safest = min(fit, key=lambda update: flipped[update.label].value)
    best = max(fit, key=lambda update: update.accuracy.value)
    rate, level = percent(flipped[safest.label].value), show_quality(task)(best.accuracy.value)
    if len(candidates) == 1:
        words = [f"{name(safest.label)}: {rate} {flips}, {quality(task)} {level}."]
    elif safest is best:
        words = [f"{name(safest.label)} leads on both: fewest {flips} ({rate}), highest {quality(task)} ({level})."]
    else:
        words = [
            f"{name(safest.label)} has the fewest {flips} ({rate}), {name(best.label)} the highest {quality(task)} "
            f"({level})."
        ]
    worse = [name(update.label) for update in candidates if update.verdict == "worse"]
    if worse:
        words.append(f"Worse than {old} beyond chance: {', '.join(worse)}.")
    held = safest.against_new
    if held is not None:
        sure = "beyond chance" if held.verdict == "better" else "not shown to be more than chance"
        change = with_interval(held.delta_nfr, points)
        words.append(
            f"Flips of {name(safest.label)} less those of {name(document.models[1].label)}: {change}, {sure}."
        )
    elif len(candidates) > 1 and all(
        u.against_new is None or u.against_new.verdict == "no difference shown" for u in candidates
    ):
        words.append("No candidate is shown to break fewer or more than it, beyond chance.")
    if task.chance is not None:
        words.append(chance_words(task))
        if best.accuracy.low <= task.chance:
            words.append("No candidate is shown to be better than guessing.")
    return " ".join(words)


def _who(model: Model) -> str:
    file = re.split(r"[/\\]", model.source.rstrip("/\\"))[-1].split(".jsonl")[0]
    generic = model.label in ("old", "new", "compat") and file not in ("", model.label, "memory")
    return f"{model.label} ({name(file)})" if generic else name(model.label)


def title(document: Document) -> str:
    """``new, muscle against old``, with the names of their files where labels are only places."""
    old, *updated = (_who(model) for model in document.models)
    return f"{', '.join(updated)} against {old}"


def names(updates: Sequence[Update]) -> list[str]:
    """Labels for headings."""
    return [name(update.label) for update in updates]


def tone(verdict: str) -> str:
    """Class of the style sheet for a verdict."""
    return verdict if verdict in ("worse", "better") else "plain"


def reasons(gate: Gate, label: str) -> list[str]:
    """Why a candidate does not pass; or that it keeps its limits."""
    checks = [check for check in gate.checks if check.label == label]
    verdict = gate.by_candidate[label]
    if verdict == "pass":
        return [f"All {len(checks)} limits are kept." if len(checks) > 1 else "The limit is kept."]
    return list(dict.fromkeys(f"{name(check.task)}: {check.message}" for check in checks if check.verdict == verdict))


def broken_first(checks: Sequence[GateCheck]) -> list[GateCheck]:
    """Checks in the order in which they matter."""
    return sorted(checks, key=lambda check: ("fail", "too little data", "pass").index(check.verdict))


def size(task: TaskResult) -> str:
    """``400 items, judged by acc, 3 left out``."""
    left_out = f", {count(task.left_out)} left out" if task.left_out else ""
    return f"{count(task.items)} items, judged by {one_line(task.metric, 60)}{left_out}"


def limits(document: Document, task: TaskResult) -> list[float]:
    """The gate's limits on negative flips of a task."""
    checks = document.gate.checks if document.gate else []
    return sorted({check.limit for check in checks if check.task == task.name and check.rule == "max_nfr"})


def missing_words(task: TaskResult) -> str:
    """How many items have no judged answer, by model and kind."""
    told = [
        f"{name(label)} {', '.join(f'{count(number)} {kind}' for kind, number in kinds.items())}"
        for label, kinds in task.missing.items()
    ]
    done = f"{count(task.left_out)} items left out" if task.left_out else "counted as wrong"
    return f"Without a judged answer: {'; '.join(told)} ({done})." if told else ""


def repeat_words(task: TaskResult) -> list[str]:
    """How flaky items are that were answered several times, and what that makes of flips."""
    if not task.flaky:
        return []
    shares = ", ".join(f"{name(label)} {percent(share)}" for label, share in task.flaky.items())
    words = [f"Up to {task.runs} answers an item. Items answered now right, now wrong: {shares}."]
    for update in task.updates:
        if update.nfr_by_chance is not None:
            words.append(
                f"{name(update.label)}: of its NFR of {percent(update.rates['nfr'].value)}, two equal models would "
                f"have {percent(update.nfr_by_chance)} by luck ({p_equals(update.p_adjusted)})."
            )
    return words


def slices_words(task: TaskResult) -> str:
    """Whether any slice got worse, for each updated model."""
    sentences = []
    for update in task.updates:
        worse = [piece for piece in update.slices if piece.verdict == "worse"]
        total = len(update.slices)
        if not total:
            continue
        who = f"{name(update.label)}: "
        if worse:
            first = ", ".join(f"{one_line(p.column, 30)} = {one_line(p.value, 40)}" for p in worse[:3])
            more = f" and {len(worse) - 3} more" if len(worse) > 3 else ""
            sentences.append(f"{who}{len(worse)} of {total} slices got worse beyond chance ({first}{more}).")
        else:
            sentences.append(f"{who}no slice got worse beyond chance ({total} looked at).")
    return " ".join(sentences)


def amount(value: float) -> str:
    """A number of any size, three digits."""
    return (f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}").replace("-", MINUS)


def signed_amount(value: float) -> str:
    """A change of :func:`amount`."""
    return ("+" if value > 0 else "") + amount(value)


def settings(document: Document) -> str:
    """What the comparison was asked for, on one line."""
    asked = {**document.options, **document.meta}
    return " · ".join(
        f"{key}: {', '.join(map(str, value)) if isinstance(value, (list, tuple)) else value}"
        for key, value in asked.items()
        if value not in (None, False, [], ())
    )
