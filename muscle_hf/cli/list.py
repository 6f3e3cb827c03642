"""``muscle-hf list``: compatibility adapters on the Hub."""

from __future__ import annotations

import argparse

from muscle_hf.files import write_json


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
    _print_table(found)
    return 0


def _print_table(found: list) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from muscle_hf.report.wording import percent

    table = Table(title="Compatibility adapters", caption="Figures as their publishers state them.")
    for column in ("adapter", "old → new", "task", "NFR plain → adapter", "change"):
        table.add_column(column, overflow="fold")
    for entry in found:
        tasks = entry.tasks or [None]
        for index, task in enumerate(tasks):
            first = (entry.repo_id, f"{entry.old or '?'} → {entry.new or '?'}") if index == 0 else ("", "")
            rates = ("–", "–", "–")
            if task is not None:
                change = task.change_percent
                shown = f"{change:+.0f} %" if change == change else "–"
                rates = (task.task, f"{percent(task.nfr_new)} → {percent(task.nfr)}", shown)
            # Text, not markup: a name may hold square brackets.
            table.add_row(*(Text(cell) for cell in (*first, *rates)))
    Console().print(table)
