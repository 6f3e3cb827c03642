"""A comparison as GitHub-flavoured Markdown, for a pull-request comment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from muscle_hf.compare.document import Document, Flip, Gate, TaskResult
from muscle_hf.report import inheritance, rows
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
    parts.append(_overview(document))
    parts += [f"{_plain(task.name)}: {_plain(w.advice(document, task), None)}" for task in results[:_ADVISED]]
    if document.noise:
        table = _data_table(rows.NOISE_HEADER, rows.noise(document.noise), 1)
        parts.append(f"### Noise floor: what re-running the same model changes\n\n{table}")
    parts.append(_footer(document))
    length = sum(len(part) + 2 for part in parts)
    for task in results:
        for folded in (
            _rates_section(document, task),
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


def _overview(document: Document) -> str:
    """The totals and the tasks; of more than fit into a comment those that lose most."""
    table = _data_table(rows.OVERVIEW_HEADER, rows.overview([*document.totals, *document.tasks]), 2)
    if len(table) <= MAX_LENGTH // 2:
        return table
    kept = max(1, len(document.tasks) * (MAX_LENGTH // 2) // len(table))
    worst = sorted(document.tasks, key=w.most_lost)[:kept]
    table = _data_table(rows.OVERVIEW_HEADER, rows.overview([*document.totals, *worst]), 2)
    return f"{table}\n\nand {len(document.tasks) - kept} more tasks, which lose less"


def _gate_table(gate: Gate) -> str:
    checks = w.broken_first(gate.checks)
    marked = [(*cells, f"{_GATE_MARKS[verdict]} {verdict}") for *cells, verdict in rows.gate(checks[:_CHECKS])]
    parts = [_data_table(rows.GATE_HEADER, marked, 2)]
    if len(checks) > _CHECKS:
        parts.append(f"and {len(checks) - _CHECKS} more limits")
    if len(gate.by_candidate) > 1:
        parts.insert(0, ", ".join(f"{_plain(label)}: {verdict}" for label, verdict in gate.by_candidate.items()))
    broken = [check for check in checks if check.verdict != "pass"]
    told = [(c.verdict, f"{w.name(c.task)}, {w.name(c.label)}: {c.message}") for c in broken[:_CHECKS]]
    reasons = [f"- {verdict}: {_plain(words, limit=None)}" for verdict, words in told]
    return "\n\n".join([*parts, "\n".join(reasons)] if reasons else parts)


def _data_table(header: Iterable[str], cells: Iterable[Sequence[str]], data: int) -> str:
    """A table whose first cells, ``data`` of them, are from data."""
    return _table(header, [[*(_plain(cell) for cell in row[:data]), *row[data:]] for row in cells])


def _rates_section(document: Document, task: TaskResult) -> str:
    header = ["", *(_plain(w.name(model.label)) for model in document.models)]
    table = _table(header, [[_plain(title), *cells] for title, *cells in rows.all_rates(task)])
    more = [_plain(words, None) for words in (*w.repeat_words(task), w.missing_words(task)) if words]
    measured = rows.measure_rows(task)
    if measured:
        more.append(_data_table(rows.MEASURE_HEADER, measured, 2))
    title = _plain(f"{task.name}: every number ({w.size(task)})")
    return _details(title, "\n\n".join([table, *more, *_inheritance_section(task)]))


def _details(summary: str, *content: str) -> str:
    """Something to unfold; nothing where there is nothing in it."""
    return f"<details><summary>{summary}</summary>\n\n{chr(10).join(content)}\n\n</details>" if all(content) else ""


def _slices_section(task: TaskResult, limit: int) -> str:
    found = rows.slice_rows(task, limit)
    summary = f"{_plain(rows.slices_title(task, limit))}; p corrected for their number"
    table = _data_table(rows.SLICE_HEADER, found, 2) if found else ""
    return _details(summary, f"{_plain(w.slices_words(task), None)}\n", table)


def _flips_section(document: Document, task: TaskResult, worst: int) -> str:
    flips = w.worst_flips(task, worst)
    summary = f"{_plain(task.name)}: the {len(flips)} worst of {w.count(task.flips_total)} flips"
    return _details(summary, _flips(document, flips))


def _inheritance_section(task: TaskResult) -> list[str]:
    if not inheritance.audited(task):
        return []
    table = _data_table(inheritance.header(task), inheritance.rows(task), 1)
    note = f"<sub>{_plain(inheritance.explanation(task), limit=None)}</sub>"
    return [f"#### {_plain(inheritance.title(task))}", table, note]


def _inherited_slices(task: TaskResult, limit: int) -> str:
    found = inheritance.slice_rows(task, limit)
    table = _data_table(inheritance.slice_header(task), found, 2) if found else ""
    return _details(f"{_plain(task.name)}: slices in which errors of old come back", table)


def _inherited_items(document: Document, task: TaskResult, limit: int) -> str:
    flips = inheritance.items(task, limit)
    of_all = f"{len(flips)} of {w.count(inheritance.total(task))}"
    return _details(f"{_plain(task.name)}: errors of old that come back ({of_all} items)", _flips(document, flips))


def _flips(document: Document, flips: Iterable[Flip]) -> str:
    return "\n".join(_flip(document, flip) for flip in flips)


def _flip(document: Document, flip: Flip) -> str:
    lines = [f"- {_code(flip.id)}: " + ("(prompt not in the log)" if flip.prompt is None else _code(flip.prompt))]
    if flip.target:
        lines.append(f"  - target: {_code(flip.target)}")
    for model in document.models:
        answer, mark = flip.answers.get(model.label), w.answer_mark(flip, model.label)
        text = "(answer not in the log)" if answer is None else _code(answer)
        lines.append(f"  - {_plain(model.label)} {mark}: {text}")
    return "\n".join(lines)


def _footer(document: Document) -> str:
    level = w.level_name(document.tasks[0].accuracy_old) if document.tasks else "95%"
    sources = ", ".join(f"{_plain(model.label)} = {_code(model.source)}" for model in document.models)
    measures = [w.measure(key) for key in dict.fromkeys(map(w.negative_key, document.tasks))]
    meanings = " ".join(f"{_plain(measure.symbol)}: {measure.meaning}." for measure in measures)
    return (
        f"<sub>In brackets: {level} intervals. p: paired test against old, corrected for the number of tasks. "
        f"{meanings}</sub>\n\n{sources}"
    )
