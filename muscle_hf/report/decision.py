"""The first section of the HTML page: which candidate to ship, and whether the limits allow it."""

from __future__ import annotations

from muscle_hf.compare.document import Document, Gate, GateCheck, NoiseFloor, TaskResult, Update
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Child, Markup, join, tag
from muscle_hf.report.parts import GATE_CSS, figure, table, task_checks
from muscle_hf.report.text import one_line


def decision(document: Document) -> Markup:
    """Accuracy against flips for each task, the limits of the gate, noise floors, and all tasks together."""
    return tag(
        "section",
        tag("h2", "Which to ship"),
        tag(
            "p",
            "Each mark is a candidate: the further up, the better its answers; the further left, the fewer answers it "
            "breaks that were right. A filled mark is beaten by no other on both counts. Lines are intervals: where "
            "they overlap, the order may be chance.",
            class_="note",
        ),
        tag("div", [_trade_off(document, task) for task in document.tasks], class_="grid"),
        None if document.gate is None else _checks(document.gate),
        _pooled(document) if document.pooled else None,
        _noise(document.noise) if document.noise else None,
        id="decision",
    )


def _trade_off(document: Document, task: TaskResult) -> Markup | None:
    rated = [(update, rate) for update in task.updates if (rate := w.negative_rate(task, update)) is not None]
    points = [
        charts.Point(update.label, rate, update.accuracy, not _beaten(rate.value, update, rated))
        for update, rate in rated
    ]
    limits = [check.limit for check in task_checks(document, task) if check.rule == "max_nfr" and check.limit <= 1]
    picture = charts.trade_off(
        f"{w.quality(task)} against negative flips on {task.name}",
        points,
        (document.models[0].label, task.accuracy_old),
        ("got worse" if task.kind == "score" else "negative flips", w.quality(task)),
        (w.percent, w.show_quality(task)),
        min(limits, default=None),
    )
    return figure(one_line(task.name, 60), picture, _leader_words(document, task), level=3)


def _beaten(flips: float, update: Update, rated: list) -> bool:
    return any(
        rate.value <= flips
        and other.accuracy.value >= update.accuracy.value
        and (rate.value < flips or other.accuracy.value > update.accuracy.value)
        for other, rate in rated
    )


def _leader_words(document: Document, task: TaskResult) -> Markup:
    safest, best = w.leaders(document, task)
    if safest is None or best is None:
        return join("There is no rate to compare.")
    rate = w.percent(w.negative_rate(task, safest).value)  # type: ignore[union-attr]
    quality = w.show_quality(task)(best.accuracy.value)
    flips = "negative flips" if task.kind == "correct" else "items that got worse"
    if len(task.updates) == 1:
        words: list[Child] = [tag("b", w.name(safest.label)), f": {rate} {flips}, {w.quality(task)} {quality}."]
    elif safest is best:
        words = [
            tag("b", w.name(safest.label)),
            f" leads on both: fewest {flips} ({rate}), highest {w.quality(task)} ({quality}).",
        ]
    else:
        words = [tag("b", w.name(safest.label)), f" has the fewest {flips} ({rate}), "]
        words += [tag("b", w.name(best.label)), f" the highest {w.quality(task)} ({quality})."]
    held = safest.against_new
    if held is None and len(task.updates) > 1:
        if all(u.against_new is None or u.against_new.verdict == "no difference shown" for u in task.updates):
            words.append(" No candidate is shown to break fewer or more than it, beyond chance.")
    elif held is not None:
        chance = "beyond chance" if held.verdict == "better" else "not shown to be more than chance"
        new = w.name(document.models[1].label)
        change = w.with_interval(held.delta_nfr, w.points)
        words.append(f" Flips of {w.name(safest.label)} less those of {new}: {change}, {chance}.")
    return join(words)


def _checks(gate: Gate) -> Markup:
    budget = f" The limits come from {one_line(gate.budget, 80)}." if gate.budget else ""
    return join(
        tag("h3", "The limits"),
        tag(
            "p",
            "A limit is kept when the end of the interval keeps it, not just the point. The noise floor is what "
            f"running the same model again changes: no limit below it can be kept.{budget}",
            class_="note",
        ),
        tag("div", [_check(check) for check in gate.checks], class_="grid"),
    )


def _check(check: GateCheck) -> Markup:
    marks = [charts.Mark("limit", check.limit, "limit")]
    if check.noise_floor is not None:
        marks.append(charts.Mark("", check.noise_floor, "noise"))
    css = {"pass": "plain", "fail": "worse"}.get(check.verdict, "plain")
    picture = charts.whiskers(
        w.rule_text(check), [charts.Row(check.label, w.decisive(check), css)], w.show_limited(check), marks=marks
    )
    chip = tag("span", f"{w.VERDICT_MARKS[check.verdict]} {check.verdict}", class_=f"chip {GATE_CSS[check.verdict]}")
    noise = "" if check.noise_floor is None else f" Noise floor (dotted): {w.percent(check.noise_floor)}."
    return figure(join(f"{w.name(check.task)}: {w.rule_text(check)} ", chip), picture, join(check.message, noise))


def _pooled(document: Document) -> Markup:
    rows = (
        (
            w.name(pooled.label),
            w.with_interval(pooled.nfr),
            w.with_interval(pooled.nfr_items),
            w.p_value(pooled.p_value),
            w.ABSENT if pooled.p_value_against_new is None else w.p_value(pooled.p_value_against_new),
        )
        for pooled in document.pooled
    )
    header_cells = ["Model", "NFR, every task alike", "NFR, every item alike", "p against old", "p against new"]
    return join(tag("h3", "All tasks together"), table(header_cells, rows, "All tasks together"))


def _noise(noise: list[NoiseFloor]) -> Markup:
    rows = (
        (
            w.name(floor.task),
            w.count(floor.runs),
            w.with_interval(floor.nfr),
            w.percent(floor.nfr_max),
            w.percent(floor.answers_changed),
        )
        for floor in noise
    )
    return join(
        tag("h3", "The noise floor"),
        tag("p", "The same model, run again: what changes without any update.", class_="note"),
        table(["Task", "Runs", "Negative flips", "Largest", "Answers changed"], rows, "Noise floor"),
    )
