"""Writes the rows of the demo's tasks, which the package carries as files.

    python examples/embedded_world/rows.py --output muscle_hf/demo/data

A file holds the rows of a seed, as JSON lines in their order: first those of ``train``, then ``validation``, then
``test``. Tickets serve both the routing and the summary task. The same seed always gives the same rows.
"""

from __future__ import annotations

import argparse
import json
import lzma
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from refunds import Return, returns
from world import Ticket, tickets

SEEDS = range(10)
COUNTS = {
    "tickets": {"train": 1600, "validation": 600, "test": 1200},
    "returns": {"train": 1200, "validation": 200, "test": 400},
}


def ticket_row(ticket: Ticket) -> dict[str, Any]:
    """What the tasks ask of a ticket and answer, and columns for slices."""
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


def return_row(case: Return) -> dict[str, Any]:
    """What the refund task asks of a return and answers, and columns for slices."""
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


def rows(kind: str, split: str, seed: int, count: int | None = None) -> list[dict[str, Any]]:
    """The first rows of a kind (a key of :data:`COUNTS`), split and seed; by default all of the package."""
    every: Iterator[dict[str, Any]]
    every = map(ticket_row, tickets(split, seed)) if kind == "tickets" else map(return_row, returns(split, seed))
    return list(islice(every, COUNTS[kind][split] if count is None else count))


def main(arguments: list[str] | None = None) -> int:
    """Writes ``OUTPUT/tickets-0.jsonl.xz`` and so on."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the files")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="default: 0 to 9")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for kind, counts in COUNTS.items():
            lines = [json.dumps({"split": split, **row}) + "\n" for split in counts for row in rows(kind, split, seed)]
            packed = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
            (options.output / f"{kind}-{seed}.jsonl.xz").write_bytes(packed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
