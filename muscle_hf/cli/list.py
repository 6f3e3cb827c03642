"""``muscle-hf list``: compatibility adapters on the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from muscle_hf.files import write_json

if TYPE_CHECKING:
    from muscle_hf.hub.search import Listing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to look for."""
    parser.add_argument("search", nargs="?", help="part of the name")
    parser.add_argument("--author", help="user or organisation")
    parser.add_argument("--base-model", metavar="ID", help="only adapters for this new base")
    parser.add_argument("--limit", type=int, default=50, help="at most so many (50)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print a table, or JSON."""
    from muscle_hf.compare.document import plain
    from muscle_hf.hub import list_compatible

    found = list(list_compatible(args.search, author=args.author, base_model=args.base_model, limit=args.limit))
    if args.json:
        write_json("-", plain(found), indent=1)
        return 0
    if not found:
        print("no compatibility adapters found")
        return 0
    from rich.console import Console

    from muscle_hf.report.terminal import table

    headings = ("adapter", "old → new", "task", "NFR plain → adapter", "change")
    rows = [row for entry in found for row in _rows(entry)]
    Console().print(table("Compatibility adapters", headings, "Figures as their publishers state them.", rows))
    return 0


def _rows(entry: Listing) -> Iterator[tuple[str, ...]]:
    """A row for each task of an adapter."""
    from muscle_hf.report.wording import percent

    names = (entry.repo_id, f"{entry.old or '?'} → {entry.new or '?'}")
    for task in entry.tasks:
        change = task.change_percent
        shown = f"{change:+.0f} %" if change == change else "–"
        yield (*names, task.task, f"{percent(task.nfr_new)} → {percent(task.nfr)}", shown)
        names = ("", "")
    if not entry.tasks:
        yield (*names, "–", "–", "–")
