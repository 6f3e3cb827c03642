"""A comparison on a terminal: one screen with what decides, or everything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from muscle_hf.compare.document import Document, Flip, Gate, NoiseFloor, TaskResult
from muscle_hf.report import inheritance, rows
from muscle_hf.report import wording as w
from muscle_hf.report.text import one_line

GOOD, BAD, UNSURE, QUIET = "green", "red", "yellow", "dim"
_VERDICT_STYLES = {"better": GOOD, "worse": BAD, "pass": GOOD, "fail": BAD, "too little data": UNSURE}
# What one screen holds: rows of the overview, sentences of advice, warnings, reasons of the gate.
_ROWS, _ADVISED, _WARNINGS, _REASONS = 8, 3, 3, 3


def render(
    document: Document, console: Console | None = None, *, full: bool = False, worst: int = 5, slices: int = 5
) -> None:
    """Print a comparison: one screen, or in ``full`` a table of every rate for each task, its slices, flips and errors
    that come back, and noise floors. ``worst`` of each task's flips to the worse are listed, and ``slices`` of its
    slices for each updated model.

    Everything from data goes through :func:`muscle_hf.report.text.one_line` and into ``Text`` objects, so neither
    terminal control sequences nor rich's own markup in it have any effect.
    """
    console = Console() if console is None else console
    shown = len(document.warnings) if full else _WARNINGS
    print_warnings([f"{task.name}: {task.doubt}" for task in document.tasks if task.doubt], console)
    print_warnings(document.warnings[:shown], console)
    if document.warnings[shown:]:
        print_warnings([f"and {len(document.warnings) - shown} more warnings (--full)"], console)
    _print_overview(document, console, full)
    if full:
        for task in document.totals:
            console.print(_task_table(document, task))
        for task in document.tasks:
            console.print(_task_table(document, task))
            if any(update.slices for update in task.updates):
                caption = "p: corrected for the number of slices of the task."
                found = rows.slice_rows(task, slices)
                console.print(table(rows.slices_title(task, slices), rows.SLICE_HEADER, caption, found, judged=True))
            if flips := w.worst_flips(task, worst):
                title = f"Worst flips of {task.name} ({len(flips)} of {w.count(task.flips_total)} flips)"
                _print_items(document, title, flips, console)
            _print_inheritance(document, task, console, worst, slices)
        if document.noise:
            console.print(noise_table(document.noise))
    if document.gate is not None:
        _print_gate(document.gate, console, full)
    if not full:
        console.print(Text("--full: every rate, slices and flips; --html FILE: a report to look at", style=QUIET))


def _print_overview(document: Document, console: Console, full: bool) -> None:
    """A row for each task and updated model, totals first; of many tasks those that lose most, on one screen."""
    several = len(document.tasks) > 1
    narrow = several and console.width < 100
    tasks = list(document.tasks)
    most = max(2, _ROWS // len(document.models[1:]))
    if not full and len(tasks) > most:
        tasks = sorted(tasks, key=w.most_lost)[:most]
    first = document.tasks[0]
    title = f"{len(document.tasks)} tasks" if several else f"{first.name}: {w.count(first.items)} items"
    columns = ["task"] * several + ["model", "quality", "change", "breaks", "repairs", "NFR", "verdict"]
    caption = (
        f"Against {w.name(document.models[0].label)}; [low, high]: {w.level_name(first.accuracy_old)} intervals; "
        "verdict: paired test, corrected for the number of tasks (–: no difference shown)."
    )
    made = table(title, columns, caption)
    shown = rows.overview([*document.totals, *tasks], intervals=not narrow)
    for place, (task, model, before, after, change, breaks, repairs, nfr, verdict) in enumerate(shown):
        first = place == 0 or shown[place - 1][0] != task
        # A narrow screen has the old model's level no room.
        level = after if narrow else f"{before} → {after.split()[0]}"
        cells = (_data(model), level, change, breaks, repairs, nfr, _verdict(verdict, short=True))
        made.add_row(*[_data(task if first else "")] * several, *cells)
    console.print(made)
    if len(tasks) < len(document.tasks):
        rest = len(document.tasks) - len(tasks)
        console.print(Text(f"and {rest} more tasks, which lose less (--full)", style=QUIET))
    for task in document.totals or document.tasks[:_ADVISED]:
        console.print(_data(f"{task.name}: " * several + w.advice(document, task)))
        told = [w.missing_words(task), *([] if several else [w.slices_words(task)])]
        for words in filter(None, w.repeat_words(task) + told):
            console.print(_data(words, QUIET))


def print_warnings(warnings: Iterable[str], console: Console) -> None:
    """Sentences that a reader must see, one a line."""
    for warning in warnings:
        console.print(Text(f"! {one_line(warning)}", style=UNSURE))


def _data(text: str, style: str = "", limit: int | None = None) -> Text:
    return Text(one_line(text, limit), style=style)


def table(
    title: str,
    columns: Iterable[str],
    caption: str | None = None,
    rows: Iterable[Iterable[str]] = (),
    *,
    judged: bool = False,
    chosen: int | None = None,
) -> Table:
    """A table for a terminal, whose texts from data are made harmless; the last cells of ``judged`` rows are verdicts,
    and the row ``chosen`` stands out."""
    made = Table(
        title=_data(title, "bold"),
        title_justify="left",
        caption=None if caption is None else Text(caption),
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    for index, column in enumerate(columns):
        made.add_column(_data(column), justify="right" if index else "left", overflow="fold")
    for place, (*cells, last) in enumerate(rows):
        texts = [*map(_data, cells), _verdict(last) if judged else _data(last)]
        made.add_row(*texts, style="bold" if place == chosen else None)
    return made


def _task_table(document: Document, task: TaskResult) -> Table:
    """Rows are measures, columns are models: narrow terminals wrap an interval below its value."""
    caption = (
        f"[low, high]: {w.level_name(task.accuracy_old)} intervals. p: paired test against old, corrected for the "
        "number of tasks."
    )
    made = table(f"{task.name}: {w.size(task)}", ["", *(w.name(model.label) for model in document.models)], caption)
    for title, *cells in rows.all_rates(task):
        made.add_row(_data(title), *(_verdict(cell) if title.startswith("verdict") else cell for cell in cells))
    return made


def _verdict(verdict: str, short: bool = False) -> Text:
    words = w.ABSENT if short and verdict == "no difference shown" else verdict
    return Text(words, style=_VERDICT_STYLES.get(verdict, QUIET))


def _print_inheritance(document: Document, task: TaskResult, console: Console, worst: int, slices: int) -> None:
    if not inheritance.audited(task):
        return
    found = inheritance.rows(task)
    console.print(table(inheritance.title(task), inheritance.header(task), inheritance.explanation(task), found))
    if pieces := inheritance.slice_rows(task, slices):
        title = "Slices in which errors of old come back"
        console.print(table(title, inheritance.slice_header(task), rows=pieces))
    flips = inheritance.items(task, worst)
    if flips:
        of_all = f"{len(flips)} of {w.count(inheritance.total(task))} items"
        _print_items(document, f"Errors of old that come back in {task.name} ({of_all})", flips, console)


def _print_items(document: Document, title: str, flips: Sequence[Flip], console: Console) -> None:
    console.print(_data(title, "bold"))
    for flip in flips:
        block = Text()
        block.append_text(_data(flip.id, "bold", 80))
        if flip.prompt is not None:
            block.append("\n  ").append_text(_data(flip.prompt, QUIET, 160))
        if flip.target:
            block.append("\n  target: ").append_text(_data(flip.target, limit=120))
        for model in document.models:
            answer = flip.answers.get(model.label)
            mark = w.answer_mark(flip, model.label)
            style = GOOD if mark == "✓" else BAD if mark == "✗" else ""
            block.append("\n  ").append_text(_data(w.name(model.label))).append(": ")
            if mark:
                block.append(f"{mark} ", style=style)
            block.append_text(_data("(answer not in the log)", QUIET) if answer is None else _data(answer, limit=120))
        console.print(Padding(block, (0, 0, 1, 1)))


def plan_table(plan: Sequence[tuple[str, str, float, float, int | None]], level: float) -> Table:
    """How many items limits need, by what is expected of the update."""
    caption = f"With {100 * level:g}% confidence and a power of 80%. Changes of accuracy: if 10% of the items flip."
    found = []
    for rule, task, limit, expected, needed in plan:
        show = w.percent if rule == "max_nfr" else w.points
        items = "–" if needed is None else w.count(needed)
        text = w.limit_text(rule, w.RULES[rule], show(limit))
        found.append((text, "every task" if task == "*" else task, show(expected), items))
    return table("Items that decide a limit", ["limit", "task", "if it is really", "items"], caption, found)


def noise_table(noise: Sequence[NoiseFloor]) -> Table:
    """What re-running the same model changes, a row a task."""
    return table("Noise floor: what re-running the same model changes", rows.NOISE_HEADER, rows=rows.noise(noise))


def _print_gate(gate: Gate, console: Console, full: bool) -> None:
    if full:
        console.print(table("Gate", rows.GATE_HEADER, rows=rows.gate(gate.checks), judged=True))
    for label, verdict in gate.by_candidate.items():
        reasons = w.reasons(gate, label)
        console.print(
            Text.assemble(f"Gate {w.VERDICT_MARKS[verdict]} ", _data(w.name(label)), ": ", _verdict(verdict))
        )
        for reason in reasons if full else reasons[:_REASONS]:
            console.print(Text("  ").append_text(_data(reason)))
        if not full and len(reasons) > _REASONS:
            console.print(Text(f"  and {len(reasons) - _REASONS} more (--full)", style=QUIET))
    line = Text.assemble(f"Gate {w.VERDICT_MARKS[gate.verdict]} ", _verdict(gate.verdict))
    if gate.budget:
        line.append(" ").append_text(_data(f"(budget: {gate.budget})", QUIET))
    console.print(line)
