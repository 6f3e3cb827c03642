"""The three tasks of the embedded world, one of each kind of the paper."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from muscle_hf.demo.lexicon import QUEUES
from muscle_hf.demo.refunds import Return, returns
from muscle_hf.demo.settings import SETTINGS
from muscle_hf.demo.world import Ticket, tickets
from muscle_hf.evaluation.tasks import Item, Task

TASK_SPLITS = ("train", "validation", "test")
QUEUE_NAMES = tuple(queue.name for queue in QUEUES)
_CHOICES = tuple(f" {name}" for name in QUEUE_NAMES)


def rows(task_name: str, split: str, *, seed: int = 0, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of a split, generated afresh: the same arguments always give the same rows.

    A smaller ``count`` gives the first rows of a larger one. Splits share no text, whatever their seeds.

    Args:
        task_name: A key of :data:`TASKS`.
        split: ``train``, ``validation`` or ``test``.
        seed: Which rows.
        count: How many; the task's :data:`muscle_hf.demo.settings.SETTINGS` by default.

    Returns:
        One dictionary a row: ``text``, what the answer is made of, and columns for slices (``product``, ``line``,
        and for tickets ``issue``, ``wording``, ``tone``, ``ambiguous``, ``settled``).

    Raises:
        ValueError: An unknown task or split, or a negative count.
    """
    if task_name not in TASKS:
        raise ValueError(f"unknown demo task {task_name!r}; choose one of {', '.join(TASKS)}")
    if split not in TASK_SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(TASK_SPLITS)}")
    count = getattr(SETTINGS[task_name], split) if count is None else count
    return list(islice(_SOURCES[task_name](split, seed), count))


def _ticket_rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    return (_ticket_row(ticket) for ticket in tickets(split, seed))


def _return_rows(split: str, seed: int) -> Iterator[dict[str, Any]]:
    return (_return_row(case) for case in returns(split, seed))


def _ticket_row(ticket: Ticket) -> dict[str, Any]:
    product, issue = ticket.product, ticket.issue
    return {
        "text": ticket.text,
        "queue": ticket.queue,
        "summary": f"{product.line.name} {product.name}, {issue.summary}. The customer is {ticket.tone}.",
        "product": product.name,
        "line": product.line.name,
        "issue": issue.name,
        "wording": ticket.wording,
        "tone": ticket.tone,
        "ambiguous": ticket.ambiguous,
        "settled": ticket.settled,
    }


def _return_row(case: Return) -> dict[str, Any]:
    return {
        "text": case.text,
        "steps": case.steps,
        "refund": case.refund,
        "price": case.price,
        "postage": case.postage,
        "product": case.product.name,
        "line": case.product.line.name,
        "opened": case.opened,
    }


_SOURCES = {"routing": _ticket_rows, "refund": _return_rows, "summary": _ticket_rows}
_TICKET_COLUMNS = ("product", "line", "issue", "wording", "tone", "ambiguous", "settled")
_RETURN_COLUMNS = ("product", "line", "opened")


def _columns(row: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _routing_item(row: Mapping[str, Any], index: int) -> Item:
    return Item(
        id=f"routing-{index}",
        prompt=f"Ticket: {row['text']}\nQueue:",
        choices=_CHOICES,
        answers=(QUEUE_NAMES.index(row["queue"]),),
        columns=_columns(row, _TICKET_COLUMNS),
    )


def _refund_item(row: Mapping[str, Any], index: int) -> Item:
    return Item(
        id=f"refund-{index}",
        prompt=f"Return: {row['text']}\nSteps:",
        references=(f" {row['steps']}",),
        columns=_columns(row, _RETURN_COLUMNS),
    )


def _summary_item(row: Mapping[str, Any], index: int) -> Item:
    return Item(
        id=f"summary-{index}",
        prompt=f"Ticket: {row['text']}\nSummary:",
        references=(f" {row['summary']}",),
        columns=_columns(row, _TICKET_COLUMNS),
    )


TASKS: dict[str, Task] = {
    "routing": Task("routing", "choice", _routing_item, metric="acc"),
    "refund": Task(
        "refund", "generation", _refund_item, metric="exact_match", extract="last_number", max_new_tokens=48
    ),
    "summary": Task("summary", "generation", _summary_item, metric="rouge1", max_new_tokens=24),
}
"""The demo's tasks by name."""
