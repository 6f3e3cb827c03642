"""A comparison as JUnit XML: one test suite a task, one test case for each limit of the gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from muscle_hf.compare.document import Document, Flip, GateCheck, TaskResult
from muscle_hf.report import markup
from muscle_hf.report import wording as w

# Flips to the worse that the output of a suite lists.
WORST = 20
_MAX_ANSWER = 500


def render(document: Document) -> str:
    """The comparison as JUnit XML.

    A failed check is a ``failure``; a check with too little data is an ``error``, so that a CI system never shows it
    as passed. Without a gate each updated model has one case that passes and tells its numbers.

    Args:
        document: What to show.

    Returns:
        A well-formed XML document; characters that XML forbids are spelled out.
    """
    suites = [_suite(document, task) for task in (*document.totals, *document.tasks)]
    return markup.render("junit.xml", {"suites": suites}) + "\n"


def _suite(document: Document, task: TaskResult) -> dict[str, Any]:
    checks = [check for check in document.gate.checks if check.task == task.name] if document.gate else []
    cases = [_case(check) for check in checks]
    if document.gate is None:
        told = {f"{update.label} against old": f"{update.label} {w.summary(task, update)}" for update in task.updates}
        cases = [{"name": name, "verdict": "pass", "text": text} for name, text in told.items()]
    flips = w.worst_flips(task, WORST)
    listed = "\n\n".join(_flip_text(document, flip) for flip in flips)
    worst = f"The {len(flips)} worst of {w.count(task.flips_total)} flips:\n\n{listed}" if flips else None
    return {"name": task.name, "numbers": list(_numbers(document, task)), "cases": cases, "worst": worst}


def _case(check: GateCheck) -> dict[str, Any]:
    noise = "" if check.noise_floor is None else f" Noise floor: {w.percent(check.noise_floor)}."
    case = {"name": f"{check.label}: {w.rule_text(check)}", "verdict": check.verdict}
    return {**case, "message": check.message, "text": f"{check.message}{noise}"}


def _numbers(document: Document, task: TaskResult) -> Iterator[tuple[str, object]]:
    metric = "accuracy" if task.kind == "correct" else task.metric
    yield from (("items", task.items), ("left_out", task.left_out))
    if task.doubt:
        yield "doubt", task.doubt
    yield f"{document.models[0].label}.{metric}", task.accuracy_old.value
    for update in task.updates:
        found: dict[str, object] = {metric: update.accuracy.value, **update.counts}
        found |= {key: rate.value for key, rate in update.rates.items()}
        if audit := update.inheritance:
            rates = {"returned": audit.returned, "inherited": audit.inherited, "fresh": audit.fresh}
            found |= {"shed": audit.shed, **{key: rate.count for key, rate in rates.items() if rate is not None}}
        found |= {"p_adjusted": update.p_adjusted, "verdict": update.verdict}
        yield from ((f"{update.label}.{key}", value) for key, value in found.items())
    yield from (("warning", warning) for warning in document.warnings)


def _flip_text(document: Document, flip: Flip) -> str:
    lines = [flip.id]
    if flip.prompt is not None:
        lines.append(f"  prompt: {_short(flip.prompt)}")
    lines.append(f"  target: {_short(flip.target)}")
    for model in document.models:
        answer = flip.answers.get(model.label)
        text = "(not in the log)" if answer is None else _short(answer)
        lines.append(f"  {model.label} {w.answer_mark(flip, model.label)}: {text}")
    return "\n".join(lines)


def _short(text: str) -> str:
    return text if len(text) <= _MAX_ANSWER else text[:_MAX_ANSWER] + "…"
