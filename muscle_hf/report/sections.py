"""The sections of the HTML page but the decision: header, tasks, flips, glossary."""

from __future__ import annotations

from muscle_hf.compare.document import Document, Gate, TaskResult, Update
from muscle_hf.report import charts, flows, inheritance
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup, join, tag
from muscle_hf.report.parts import GATE_CSS, figure, table, task_checks, warning
from muscle_hf.report.slices import slices
from muscle_hf.report.text import one_line

# With more tasks than this, those after the first start folded.
_OPEN_TASKS = 3
_GATE_WORDS = {
    "pass": "The gate passes",
    "fail": "The gate fails",
    "too little data": "Too little data to decide",
}


def title(document: Document) -> str:
    """``new, muscle against old``."""
    old, *updated = [one_line(model.label, 30) for model in document.models]
    return f"{', '.join(updated)} against {old}"


def header(document: Document) -> Markup:
    """Title, verdict of the gate, and a plain sentence for each task and model."""
    items = sum(task.items for task in document.tasks)
    count = len(document.tasks)
    return tag(
        "header",
        tag("p", "Model update", class_="eyebrow"),
        tag("h1", title(document)),
        tag("p", f"{w.count(items)} items in {count} task{'' if count == 1 else 's'}", class_="lede"),
        None if document.gate is None else _banner(document.gate),
        [warning(text) for text in document.warnings],
        _contents(document),
    )


def _banner(gate: Gate) -> Markup:
    reasons = [w.reason(check) for check in gate.checks if check.verdict == gate.verdict != "pass"]
    shown = reasons[:5] or [
        f"All {len(gate.checks)} limits are kept." if len(gate.checks) > 1 else "The limit is kept."
    ]
    more = len(reasons) - len(shown)
    return tag(
        "div",
        tag("span", w.VERDICT_MARKS[gate.verdict], class_="sign", aria_hidden="true"),
        tag(
            "div",
            tag("strong", _GATE_WORDS[gate.verdict]),
            [tag("p", reason) for reason in shown],
            tag("p", f"and {more} more") if more > 0 else None,
        ),
        class_=f"banner {GATE_CSS[gate.verdict]}",
    )


def _contents(document: Document) -> Markup:
    links = [tag("a", "Which to ship", href="#decision")]
    links += [tag("a", one_line(task.name, 24), href=f"#task-{i}") for i, task in enumerate(document.tasks[:8])]
    links += [tag("a", "Flips", href="#flips"), tag("a", "Words", href="#words")]
    return tag("nav", links, aria_label="Contents")


def tasks(document: Document) -> Markup:
    """A foldable part for each task."""
    few = len(document.tasks) <= _OPEN_TASKS
    return tag(
        "section",
        tag("h2", "Task by task"),
        [_task(document, task, index, few or index == 0) for index, task in enumerate(document.tasks)],
    )


def _task(document: Document, task: TaskResult, index: int, opened: bool) -> Markup:
    rates = _rates(document, task)
    left_out = f", {w.count(task.left_out)} left out" if task.left_out else ""
    size = f"{w.count(task.items)} items, judged by {task.metric}{left_out}"
    return tag(
        "details",
        tag("summary", tag("h3", one_line(task.name, 80)), tag("span", size, class_="soft")),
        tag(
            "ul",
            [tag("li", tag("b", w.name(u.label)), f" {w.summary(task, u)}") for u in task.updates],
            class_="plainly",
        ),
        tag("div", [_outcomes(document, task, update) for update in task.updates], class_="grid"),
        tag("div", [_flow(document, task, update) for update in task.updates], class_="grid"),
        tag("div", rates, class_="grid pairs" if len(rates) == 4 else "grid"),
        _all_rates(task),
        inheritance.section(document, task),
        slices(task, index),
        class_="task",
        id=f"task-{index}",
        open=opened,
    )


def _outcomes(document: Document, task: TaskResult, update: Update) -> Markup:
    old, items = document.models[0].label, max(task.items, 1)
    down, up = w.negatives(task, update), w.positives(task, update)
    if task.kind == "score":
        caption = f"Of {w.count(task.items)} items, {w.count(down)} score lower than with {one_line(old, 30)}."
        return figure(one_line(update.label, 40), charts.three_ways(update.label, update.counts), caption)
    caption = join(
        tag("span", w.count(down), class_="worse"),
        f" in {w.count(task.items)} answers went from right to wrong ({w.percent(down / items)}), ",
        tag("span", w.count(up), class_="better"),
        " from wrong to right. The area of a square is its share of all items.",
    )
    heading = f"{one_line(old, 30)} → {one_line(update.label, 30)}"
    return figure(heading, charts.quadrants(old, update.label, update.counts), caption)


def _flow(document: Document, task: TaskResult, update: Update) -> Markup | None:
    held = update.against_new
    if held is None or not any(flow.items for flow in held.flows):
        return None
    labels = [document.models[0].label, document.models[1].label, update.label]
    short = [one_line(label, 24) for label in labels]
    told = sorted(
        (flow for flow in held.flows if flow.items and flows.story(flow).words), key=lambda flow: -flow.items
    )
    legend = [
        tag(
            "li",
            tag("span", class_=f"swatch {flows.story(flow).css}", aria_hidden="true"),
            tag("b", w.count(flow.items)),
            " ",
            flows.story(flow).words.format(new=short[1], compat=short[2]),
        )
        for flow in told
    ]
    return figure(" → ".join(short), flows.picture(labels, held.flows), tag("ul", legend, class_="legend"))


def _rates(document: Document, task: TaskResult) -> list[Markup]:
    quality = w.quality(task)
    rows = [charts.Row(document.models[0].label, task.accuracy_old)]
    rows += [charts.Row(update.label, update.accuracy) for update in task.updates]
    heading = quality[0].upper() + quality[1:]
    level = w.level_name(task.accuracy_old)
    panels = [
        figure(
            heading,
            charts.whiskers(heading, rows, w.show_quality(task), zero=False),
            f"Dot: measured. Line: {level} interval.",
        )
    ]
    for key, css in (
        ("nfr", "worse"),
        ("nfr_smooth", "worse"),
        ("pfr", "better"),
        ("pfr_smooth", "better"),
        ("nfr_mc", "worse"),
    ):
        rated = [charts.Row(u.label, u.rates[key], css) for u in task.updates if key in u.rates]
        if rated:
            marks, note = _rate_marks(document, task, key)
            what = w.measure(key)
            meaning = f"{what.symbol}: {what.meaning}.{note}"
            picture = charts.whiskers(what.name, rated, w.show_rate(key), marks=marks)
            panels.append(figure(f"{what.name} ({what.symbol})", picture, meaning))
    return panels


def _rate_marks(document: Document, task: TaskResult, key: str) -> tuple[list[charts.Mark], str]:
    if key not in {"nfr", "nfr_smooth"}:
        return [], ""
    limits = {check.limit for check in task_checks(document, task) if check.rule == "max_nfr"}
    marks = [charts.Mark("limit", limit, "limit") for limit in sorted(limits)]
    floors = [floor.nfr.value for floor in document.noise if floor.task == task.name]
    marks += [charts.Mark("", floor, "noise") for floor in floors]
    return marks, f" Dotted: the noise floor, {w.percent(floors[0])}." if floors else ""


def _all_rates(task: TaskResult) -> Markup:
    keys = list(dict.fromkeys(key for update in task.updates for key in update.rates))
    rows = [
        (
            tag("span", w.measure(key).symbol, title=w.measure(key).meaning),
            *(w.with_interval(u.rates[key], w.show_rate(key)) if key in u.rates else w.ABSENT for u in task.updates),
        )
        for key in keys
    ]
    rows += [("p against old", *(w.p_value(update.p_adjusted) for update in task.updates))]
    if any(update.against_new for update in task.updates):
        symbol = w.measure(w.negative_key(task)).symbol
        held = [update.against_new for update in task.updates]
        rows += [
            (
                f"Δ{symbol} against new",
                *(w.ABSENT if h is None else w.with_interval(h.delta_nfr, w.points) for h in held),
            ),
            ("p against new", *(w.ABSENT if h is None else w.p_value(h.p_adjusted) for h in held)),
        ]
    header_cells = ["Measure", *(w.name(update.label) for update in task.updates)]
    return tag("details", tag("summary", "All numbers"), table(header_cells, rows, "All numbers"), class_="more")


def flips(document: Document) -> Markup:
    """The frame of the list; the script fills it."""
    return tag(
        "section",
        tag("h2", "Every flip"),
        tag("noscript", tag("p", "The list needs JavaScript; everything above does not.", class_="warning")),
        tag(
            "form",
            tag(
                "label",
                "Search",
                tag(
                    "input",
                    type="search",
                    id="search",
                    placeholder="words in prompts, answers, ids",
                    autocomplete="off",
                ),
                class_="wide",
            ),
            tag("label", "Show", tag("select", id="filter")),
            tag("label", "Task", tag("select", id="task"), id="task-label", hidden=True),
            tag("label", "Column", tag("select", id="column"), id="column-label", hidden=True),
            tag("label", "Value", tag("select", id="value"), id="value-label", hidden=True),
            tag("label", "Sort by", tag("select", id="sort")),
            class_="controls",
            role="search",
            aria_label="Flips",
        ),
        tag("p", id="count", role="status", aria_live="polite"),
        tag("ol", id="list"),
        tag(
            "nav",
            tag("button", "← Previous", type="button", id="previous"),
            tag("span", id="page"),
            tag("button", "Next →", type="button", id="next"),
            tag("button", "Open all on this page", type="button", id="open-all"),
            class_="pager",
            aria_label="Pages of flips",
        ),
        id="flips",
    )


def glossary(document: Document) -> Markup:
    """The words, where the predictions came from, and what the comparison was asked for."""
    used = dict.fromkeys(key for task in document.tasks for update in task.updates for key in update.rates)
    words = {f"{w.measure(key).name} ({w.measure(key).symbol})": w.measure(key).meaning for key in used}
    words["p"] = (
        "how often chance alone would make a difference at least this large; paired, two-sided, corrected for the "
        "number of tasks (or slices)"
    )
    level = f"{w.level_name(document.tasks[0].accuracy_old)} " if document.tasks else ""
    words["interval"] = f"[low, high]: in {level}of repetitions such a range holds the true value"
    rows = [(w.name(model.label), model.role, model.source, model.format) for model in document.models]
    asked = {**document.options, **document.meta}
    options = " · ".join(
        f"{key}: {_listed(value)}" for key, value in asked.items() if value is not None and value is not False
    )
    return tag(
        "footer",
        tag("h2", "Words and sources"),
        tag("dl", [(tag("dt", word), tag("dd", meaning)) for word, meaning in words.items()]),
        table(["Model", "Role", "Predictions", "Format"], rows, "Sources"),
        tag("p", options, class_="soft"),
        id="words",
    )


def _listed(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
