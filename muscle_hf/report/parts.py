"""What several sections of the HTML page are made of."""

from __future__ import annotations

from collections.abc import Iterable

from muscle_hf.compare.document import Document, GateCheck, TaskResult
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Child, Markup, join, tag

# Classes of the style sheet for the gate's verdicts.
GATE_CSS = {"pass": "pass", "fail": "fail", "too little data": "unsure"}


def figure(heading: Child, picture: Child, caption: Child, level: int = 4) -> Markup:
    """A picture with its heading and what it says in plain words."""
    return tag("figure", tag(f"h{level}", heading, class_="title"), picture, tag("figcaption", caption))


def warning(text: Child) -> Markup:
    """A sentence that a reader must see."""
    return tag("p", tag("span", "!", class_="sign", aria_hidden="true"), text, class_="warning")


def folded(figures: list[Markup], shown: int, what: str) -> Markup:
    """Figures in a grid; those beyond ``shown`` are folded away."""
    rest = figures[shown:]
    more = tag(
        "details", tag("summary", f"{w.count(len(rest))} more {what}"), tag("div", rest, class_="grid"), class_="more"
    )
    return join(tag("div", figures[:shown], class_="grid"), more if rest else None)


def table(header_cells: Iterable[str], rows: Iterable[Iterable[Child]], caption: str) -> Markup:
    """A table that scrolls sideways where it does not fit; ``caption`` is for screen readers."""
    head = tag("tr", [tag("th", cell, scope="col") for cell in header_cells])
    body = [
        tag("tr", [tag("td", cell) if index else tag("th", cell, scope="row") for index, cell in enumerate(row)])
        for row in rows
    ]
    body_and_head = tag("table", tag("caption", caption, class_="hidden"), tag("thead", head), tag("tbody", body))
    return tag("div", body_and_head, class_="scroll", tabindex="0", role="region", aria_label=caption)


def task_checks(document: Document, task: TaskResult) -> list[GateCheck]:
    """The gate's checks of one task."""
    return [check for check in document.gate.checks if check.task == task.name] if document.gate else []
