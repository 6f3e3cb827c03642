"""A comparison as JUnit XML: one test suite a task, one test case for each limit of the gate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from muscle_hf.compare.document import Document, Flip, GateCheck, TaskResult
from muscle_hf.report import wording as w
from muscle_hf.report.text import visible

# Flips to the worse that the output of a suite lists.
WORST = 20
_MAX_ANSWER = 500
# What XML 1.0 forbids even as a character reference.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(document: Document) -> str:
    """The comparison as JUnit XML.

    A failed check is a ``failure``; a check with too little data is an ``error``, so that a CI system never shows it
    as passed. Without a gate each updated model has one case that passes and tells its numbers.

    Args:
        document: What to show.

    Returns:
        A well-formed XML document; characters that XML forbids are spelled out or removed.
    """
    root = ET.Element("testsuites", {"name": "muscle-hf compare"})
    for task in (*document.totals, *document.tasks):
        _add_suite(root, document, task)
    for element in (*root, root):
        for name, kind in {"tests": "", "failures": "/failure", "errors": "/error"}.items():
            element.set(name, str(len(element.findall(f".//testcase{kind}"))))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    return _ILLEGAL.sub("", visible(text))


def _add_suite(root: ET.Element, document: Document, task: TaskResult) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": _legal(task.name)})
    properties = ET.SubElement(suite, "properties")
    for name, value in _numbers(document, task):
        ET.SubElement(properties, "property", {"name": _legal(name), "value": _legal(str(value))})
    checks = [check for check in document.gate.checks if check.task == task.name] if document.gate else []
    for check in checks:
        _add_check(suite, check)
    if document.gate is None:
        for update in task.updates:
            case = _case(suite, task.name, f"{update.label} against old")
            ET.SubElement(case, "system-out").text = _legal(f"{update.label} {w.summary(task, update)}")
    flips = w.worst_flips(task, WORST)
    if flips:
        listing = "\n\n".join(_flip_text(document, flip) for flip in flips)
        ET.SubElement(suite, "system-out").text = _legal(
            f"The {len(flips)} worst of {w.count(task.flips_total)} flips:\n\n{listing}"
        )


def _case(suite: ET.Element, task: str, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", {"classname": f"muscle-hf.{_legal(task)}", "name": _legal(name)})


def _add_check(suite: ET.Element, check: GateCheck) -> None:
    case = _case(suite, check.task, f"{check.label}: {w.rule_text(check)}")
    noise = "" if check.noise_floor is None else f" Noise floor: {w.percent(check.noise_floor)}."
    text = _legal(f"{check.message}{noise}")
    if check.verdict == "pass":
        ET.SubElement(case, "system-out").text = text
    else:
        kind = "failure" if check.verdict == "fail" else "error"
        ET.SubElement(case, kind, {"type": check.verdict, "message": _legal(check.message)}).text = text


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
