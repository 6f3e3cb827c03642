"""What only the study's confirmation has of the embedded world: draws of its own, and a task, urgency of tickets.

A ticket's urgency is how bad its problem is, one level more where everything in the house hangs on the product, and
one more where the customer is angry; from 1 to 4. So a model has to know what a saying means and what a
product is, which the world's bases learn from text, and the problem that is over counts for nothing, as it does for
the queue.
"""

from __future__ import annotations

import sys
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from muscle_hf.demo import TASKS as DEMO_TASKS
from muscle_hf.evaluation import Task
from muscle_hf.evaluation.yaml_task import task_from_dict

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "embedded_world"))
from rows import SEEDS, rows, ticket_row
from world import Ticket, tickets

# Tokens that the bases have read: an adapter does not teach them to tell apart those that they never met.
LEVELS = ("1", "2", "3", "4")
# How bad a problem is by itself; what is not named is 1.
BADNESS = {
    "invoice": 0, "address": 0, "profile": 0, "setup": 0, "flaky": 0, "wrong_item": 0,
    "double_charge": 2, "locked_out": 2, "dead": 2, "broken_part": 2,
}  # fmt: skip
NEEDED_LINES = ("router", "cloud plan")
TASKS: dict[str, Task] = {
    "routing": DEMO_TASKS["routing"],
    "urgency": task_from_dict(
        {"name": "urgency", "kind": "choice", "prompt": "Ticket: {text}\nUrgency:", "choices": list(LEVELS),
         "answer": "urgency", "answer_labels": list(LEVELS),
         "columns": ["issue", "line", "tone", "wording", "ambiguous", "settled"]}
    )
}  # fmt: skip


def urgency_of(ticket: Ticket) -> str:
    """The level of a ticket."""
    more = (ticket.product.line.name in NEEDED_LINES) + (ticket.tone == "angry")
    return LEVELS[min(BADNESS.get(ticket.issue.name, 1) + more, len(LEVELS) - 1)]


def drawn_rows(split: str, seed: int, count: int) -> list[dict[str, Any]]:
    """Rows of a second generator seed: no text of them is among those that the package carries, of any seed."""
    known = _carried(split)
    fresh = (ticket for ticket in tickets(split, f"second/{seed}") if ticket.text not in known)
    return [{**ticket_row(ticket), "urgency": urgency_of(ticket)} for ticket in islice(fresh, count)]


@cache
def _carried(split: str) -> frozenset[str]:
    return frozenset(row["text"] for seed in SEEDS for row in rows("tickets", split, seed))
