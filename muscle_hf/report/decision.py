"""The first section of the HTML page: which candidate to ship, and whether the limits allow it."""

from __future__ import annotations

from muscle_hf.compare.document import Document, Gate, GateCheck, NoiseFloor
from muscle_hf.report import charts
from muscle_hf.report import wording as w
from muscle_hf.report.candidates import trade_offs
from muscle_hf.report.markup import Markup, join, tag
from muscle_hf.report.parts import GATE_CSS, figure, folded, table
from muscle_hf.report.text import one_line

# Pictures of a kind before the fold, and which limits come first.
_SHOWN = 6
_ORDER = ("fail", "too little data", "pass")


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
        folded(trade_offs(document), _SHOWN, "tasks"),
        None if document.gate is None else _checks(document.gate),
        _noise(document.noise) if document.noise else None,
        id="decision",
    )


def _checks(gate: Gate) -> Markup:
    checks = sorted(gate.checks, key=lambda check: _ORDER.index(check.verdict))
    budget = f" The limits come from {one_line(gate.budget, 80)}." if gate.budget else ""
    return join(
        tag("h3", "The limits"),
        tag(
            "p",
            "A limit is kept when the end of the interval keeps it, not just the point. The noise floor is what "
            f"running the same model again changes: no limit below it can be kept.{budget}",
            class_="note",
        ),
        folded([_check(check) for check in checks], _SHOWN, "limits"),
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
