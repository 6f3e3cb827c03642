"""``muscle-hf fleet``: one base update and all adapters on it, from one file to one page."""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muscle_hf.fleet.settings import Fleet

_EPILOG = """\
exit code: 0 every task ships; 1 a task is held or failed; 3 tasks are held for want of test items alone; 2 bad use or
bad input; 130 stopped by Ctrl-C. Every setting can be given here too: --update.new ID, --results hf://me/fleet (where
other machines find what is done), --learning_rate 1e-4 (of all tasks).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The fleet's file, and who does its steps."""
    from muscle_hf.user_code import add_no_code_argument

    parser.epilog = _EPILOG
    parser.add_argument("file", metavar="FILE", help="YAML with the update and its tasks")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what would be done, and what it would take, and stop")
    what.add_argument("--status", action="store_true", help="print how far every task is, and stop")
    parser.add_argument("--only", action="append", default=[], metavar="TASK", help="only this task; repeatable")
    parser.add_argument("--executor", choices=["here", "ray", "slurm"], default="here", help="does the steps (here)")
    parser.add_argument(
        "--address",
        help="of the Ray cluster, by default the one of the environment, or a new one here; with slurm: `local` tries "
        "the jobs out as processes here",
    )
    add_no_code_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run, plan, or look."""
    from muscle_hf.fleet.run import chosen, fetch_all
    from muscle_hf.fleet.settings import load_fleet
    from muscle_hf.pipeline.launch import interruptible
    from muscle_hf.pipeline.steps import hush

    hush()
    fleet = load_fleet(args.file, args.overrides)
    if not (args.status or args.plan):
        return interruptible(lambda: _run(fleet, args))
    fetch_all(fleet)
    if args.status:
        _print_status(fleet, chosen(fleet, args.only))
    else:
        from muscle_hf.fleet.overview import describe

        print(describe(fleet, args.only))
    return 0


def _run(fleet: Fleet, args: argparse.Namespace) -> int:
    from muscle_hf.fleet.cluster import on_ray, on_slurm
    from muscle_hf.fleet.run import PAGE_FILE, here, run_fleet

    ray, slurm = partial(on_ray, address=args.address), partial(on_slurm, cluster=args.address)
    executor = {"here": here, "ray": ray, "slurm": slurm}[args.executor]
    code = run_fleet(fleet, args.only, lambda text: print(text, flush=True), executor)
    _print_status(fleet, [task.name for task in fleet.tasks])
    print(f"Page: {fleet.folder / PAGE_FILE}. The lock beside it is the next update's old side.")
    return code


def _print_status(fleet: Fleet, names: list[str]) -> None:
    from rich.console import Console

    from muscle_hf.fleet.overview import status_table

    for where, text in fleet.problems:
        print(f"error: {where}: {text}")
    Console(highlight=False).print(status_table(fleet, names))
