"""A comparison as GitHub-flavoured Markdown, for a pull-request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable

from muscle_hf.compare.document import Document, Flip, Gate, GateCheck, TaskResult
from muscle_hf.report import inheritance
from muscle_hf.report import wording as w
from muscle_hf.report.text import one_line

# GitHub refuses comments of more than 65,536 characters; flips are left out before the tables are.
MAX_LENGTH = 60_000
# Tasks (totals first) that are told in a sentence.
_ADVISED = 3
_GATE_MARKS = {"fail": "❌", "too little data": "⚠️", "pass": "✅"}
# Limits that a comment lists.
_CHECKS = 20
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>()#+!|~&$^=]")
# What turns plain text into mentions, references and links; an invisible joiner stops that.
_AUTOLINK = re.compile(r"(?i)(@|https?:|ftp:|mailto:|xmpp:|www(?=\.)|gh-(?=\d))")
_JOINER = "&#8288;"


def render(document: Document, *, worst: int = 10, slices: int = 10) -> str:
    """The comparison as Markdown.

    Args:
        document: What to show.
        worst: How many of each task's flips to the worse are listed (folded away).
        slices: How many of each task's slices are listed, for each updated model (folded away).

    Returns:
        Text of at most ``MAX_LENGTH`` characters or, if the tables alone are longer, with the tables only. Nothing
        from data can format, mention, reference or link.
    """
    parts = [_heading(document.gate)]
    doubts = [f"{task.name}: {task.doubt}" for task in document.tasks if task.doubt]
    parts += [f"> ⚠️ {_plain(warning, None)}" for warning in (*doubts, *document.warnings)]
    if document.gate is not None:
        parts.append(_gate_table(document.gate))
    results = [*document.totals, *document.tasks]
    if len(document.tasks) > 1:
        parts.append(_overview(document))
    else:
        parts += [part for task in document.tasks for part in _task_section(document, task)]
    parts += [f"{_plain(task.name)}: {_plain(w.advice(document, task), None)}" for task in results[:_ADVISED]]
    if document.noise:
        parts.append(_noise_table(document))
    parts.append(_footer(document))
    length = sum(len(part) + 2 for part in parts)
    for task in results:
        details = "\n\n".join(_task_section(document, task)) if len(document.tasks) > 1 else ""
        for folded in (
            details and _details(f"{_plain(task.name)}: every rate", details),
            _slices_section(task, slices),
            _flips_section(document, task, worst),
            _inherited_slices(task, slices),
            _inherited_items(document, task, worst),
        ):
            if folded and length + len(folded) + 2 < MAX_LENGTH:
                parts.insert(-1, folded)
                length += len(folded) + 2
    return "\n\n".join(parts) + "\n"


def _plain(text: str, limit: int | None = 200) -> str:
    """Text from data outside of code: Markdown's and HTML's own characters as entities, links and mentions broken."""
    # Escaping first would let the autolink pattern see the entities' own characters.
    pieces = _AUTOLINK.split(one_line(text, limit))
    escaped = [_SPECIAL.sub(lambda match: f"&#{ord(match.group())};", piece) for piece in pieces]
    line = "".join(piece + _JOINER if index % 2 else piece for index, piece in enumerate(escaped))
    line = re.sub(r"&#35;(?=\d)", f"&#35;{_JOINER}", line)
    return re.sub(r"^(\d+\.|-)", rf"{_JOINER}\1", line)


def _code(text: str, limit: int = 200) -> str:
    """Text from data as a code span whose fence is longer than any run of backticks in it. Not for tables (pipes)."""
    line = one_line(text, limit)
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {line} {fence}" if line else "(empty)"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(gate: Gate | None) -> str:
    if gate is None:
        return "## Model update: flips"
    budget = f" (budget: {_plain(gate.budget)})" if gate.budget else ""
    return f"## {_GATE_MARKS[gate.verdict]} Model update: {gate.verdict}{budget}"


def _broken_first(check: GateCheck) -> int:
    return list(_GATE_MARKS).index(check.verdict)


def _gate_table(gate: Gate) -> str:
    rows = (
        (
            _plain(check.task),
            _plain(check.label),
            w.rule_text(check),
            w.with_interval(w.decisive(check), w.show_limited(check)),
            w.ABSENT if check.noise_floor is None else w.percent(check.noise_floor),
            f"{_GATE_MARKS[check.verdict]} {check.verdict}",
        )
        for check in sorted(gate.checks, key=_broken_first)[:_CHECKS]
    )
    table = _table(["Task", "Model", "Limit", "Measured, bound", "Noise floor", "Verdict"], rows)
    if len(gate.checks) > _CHECKS:
        table += f"\n\nand {len(gate.checks) - _CHECKS} more limits"
    if len(gate.by_candidate) > 1:
        table = (
            ", ".join(f"{_plain(label)}: {verdict}" for label, verdict in gate.by_candidate.items()) + "\n\n" + table
        )
    reasons = [
        f"- {check.verdict}: {_plain(w.reason(check), limit=None)}" for check in gate.checks if check.verdict != "pass"
    ][:_CHECKS]
    return "\n\n".join([table, "\n".join(reasons)] if reasons else [table])


def _overview(document: Document) -> str:
    """A row for each task and updated model, totals first."""
    rows = []
    for task in (*document.totals, *document.tasks):
        show = w.show_quality(task)
        for update in task.updates:
            rate = w.negative_rate(task, update)
            rows.append(
                [
                    _plain(task.name),
                    _plain(update.label),
                    w.count(task.items),
                    f"{show(task.accuracy_old.value)} → {show(update.accuracy.value)}",
                    w.with_interval(update.change, w.show_change(task)),
                    w.ABSENT if rate is None else w.with_interval(rate),
                    update.verdict,
                ]
            )
    return _table(["Task", "Model", "Items", "Quality", "Change", "NFR", "Verdict"], rows)


def _task_section(document: Document, task: TaskResult) -> list[str]:
    show, change, key = w.show_quality(task), w.show_change(task), w.negative_key(task)
    symbol = w.measure(key).symbol
    header = [
        "Model",
        w.quality(task),
        "Change",
        "Breaks",
        "Repairs",
        symbol,
        f"Δ{symbol} against new",
        "p",
        "Verdict",
    ]
    old = _plain(document.models[0].label)
    rows = [[old, w.with_interval(task.accuracy_old, show), *[""] * (len(header) - 2)]]
    for update in task.updates:
        held = update.against_new
        rate = w.negative_rate(task, update)
        rows.append(
            [
                _plain(update.label),
                w.with_interval(update.accuracy, show),
                w.with_interval(update.change, change),
                w.count(w.negatives(task, update)),
                w.count(w.positives(task, update)),
                w.ABSENT if rate is None else w.with_interval(rate),
                "" if held is None else f"{w.with_interval(held.delta_nfr, w.points)} ({held.verdict})",
                w.p_value(update.p_adjusted),
                update.verdict,
            ]
        )
    left_out = f", {w.count(task.left_out)} left out" if task.left_out else ""
    title = f"### {_plain(task.name)} ({w.count(task.items)} items, {_plain(task.metric)}{left_out})"
    return [f"{title}\n\n{_table([_plain(cell) for cell in header], rows)}", *_inheritance_section(task)]


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{summary}</summary>\n\n{content}\n\n</details>"


def _slices_section(task: TaskResult, limit: int) -> str:
    rows = [[_plain(slice_), _plain(label), *rest] for slice_, label, *rest in w.slice_rows(task, limit)]
    if not rows:
        return ""
    summary = f"{_plain(w.slices_title(task, limit))}; p corrected for their number"
    return _details(summary, _table(w.SLICE_HEADER, rows))


def _flips_section(document: Document, task: TaskResult, worst: int) -> str:
    flips = w.worst_flips(task, worst)
    if not flips:
        return ""
    summary = f"{_plain(task.name)}: the {len(flips)} worst of {w.count(task.flips_total)} flips"
    items = "\n".join(_flip(document, flip) for flip in flips)
    return _details(summary, items)


def _inheritance_section(task: TaskResult) -> list[str]:
    if not inheritance.audited(task):
        return []
    rows = [[_plain(label), *rest] for label, *rest in inheritance.rows(task)]
    note = f"<sub>{_plain(inheritance.explanation(task), limit=None)}</sub>"
    return [f"#### {_plain(inheritance.title(task))}", _table(inheritance.header(task), rows), note]


def _inherited_slices(task: TaskResult, limit: int) -> str:
    rows = [[_plain(slice_), _plain(label), *rest] for slice_, label, *rest in inheritance.slice_rows(task, limit)]
    if not rows:
        return ""
    summary = f"{_plain(task.name)}: slices in which errors of old come back"
    return _details(summary, _table(inheritance.slice_header(task), rows))


def _inherited_items(document: Document, task: TaskResult, limit: int) -> str:
    flips = inheritance.items(task, limit)
    if not flips:
        return ""
    of_all = f"{len(flips)} of {w.count(inheritance.total(task))}"
    summary = f"{_plain(task.name)}: errors of old that come back ({of_all} items)"
    listing = "\n".join(_flip(document, flip) for flip in flips)
    return _details(summary, listing)


def _flip(document: Document, flip: Flip) -> str:
    lines = [f"- {_code(flip.id)}: " + ("(prompt not in the log)" if flip.prompt is None else _code(flip.prompt))]
    if flip.target:
        lines.append(f"  - target: {_code(flip.target)}")
    for model in document.models:
        answer, mark = flip.answers.get(model.label), w.answer_mark(flip, model.label)
        text = "(answer not in the log)" if answer is None else _code(answer)
        lines.append(f"  - {_plain(model.label)} {mark}: {text}")
    return "\n".join(lines)


def _noise_table(document: Document) -> str:
    rows = (
        (
            _plain(floor.task),
            w.count(floor.runs),
            w.with_interval(floor.nfr),
            w.percent(floor.nfr_max),
            w.percent(floor.answers_changed),
        )
        for floor in document.noise
    )
    table = _table(["Task", "Runs", "NFR", "Largest", "Answers changed"], rows)
    return f"### Noise floor: what re-running the same model changes\n\n{table}"


def _footer(document: Document) -> str:
    level = w.level_name(document.tasks[0].accuracy_old) if document.tasks else "95%"
    sources = ", ".join(f"{_plain(model.label)} = {_code(model.source)}" for model in document.models)
    measures = [w.measure(key) for key in dict.fromkeys(map(w.negative_key, document.tasks))]
    meanings = " ".join(f"{_plain(measure.symbol)}: {measure.meaning}." for measure in measures)
    return (
        f"<sub>In brackets: {level} intervals. p: paired test against old, corrected for the number of tasks. "
        f"{meanings}</sub>\n\n{sources}"
    )
