"""What a fleet would do, and how far it is, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from muscle_hf.cache.room import human_bytes
from muscle_hf.fleet.checks import checked_runs
from muscle_hf.fleet.run import chosen, line_of
from muscle_hf.fleet.settings import Fleet
from muscle_hf.fleet.task import read_state, steps_of
from muscle_hf.pipeline.plan import ESTIMATES, GIB, Spread, disk_of, duration, plan_of, sizes_of
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.pipeline.teaching import cache_bytes

if TYPE_CHECKING:
    from rich.table import Table


def status_table(fleet: Fleet, names: Sequence[str]) -> Table:
    """A row a task: its verdict, or how far it is."""
    from muscle_hf.report.terminal import table

    rows = []
    for line in (line_of(task) for task in fleet.tasks if task.name in names):
        if line.outcome is None:
            rows.append((line.name, "", "", ": ".join(line.status)))
            continue
        quality = " / ".join(line.shown("quality", name) for name in (OLD, NEW, COMPAT))
        rows.append((line.name, quality, " / ".join(line.shown("nfr", name) for name in (NEW, COMPAT)), line.verdict))
    headings = ("task", "accuracy now / plain / compatible", "NFR plain / compatible", "verdict")
    return table(str(fleet.settings.update), headings, rows=rows)


def describe(fleet: Fleet, only: Sequence[str] = ()) -> str:
    """What would be done for each task, and what that takes, as text."""
    lines: list[str] = []
    seconds = disk = memory = 0.0
    tasks = {task.name: task for task in fleet.tasks}
    for name, run in checked_runs(fleet, chosen(fleet, only), lambda text: None).items():
        state = read_state(tasks[name])
        left = [step for step in steps_of(tasks[name]) if state.get(step, {}).get("state") != "done"]
        sizes = sizes_of(run.settings)
        plans = [plan for plan in plan_of(run, Spread(), sizes) if plan.name in left]
        takes = sum(plan.seconds or 0.0 for plan in plans)
        peak, room = max((plan.memory for plan in plans), default=0.0), disk_of(run, sizes, plans)
        room += cache_bytes(run) if plans and "teacher_cache" in run.teaching().training else 0
        trained = ", ".join(f"{plan.name} {'?' if plan.steps is None else plan.steps} steps" for plan in plans)
        lines.append(f"{name}: {' '.join(left) or 'nothing left to do'}")
        if plans:
            lines.append(f"    trains {trained}; {peak / GIB:.1f} GiB, {duration(takes)}, {human_bytes(room)} of disk")
        seconds, disk, memory = seconds + takes, disk + room, max(memory, peak)
    lines.append(
        f"In all: {memory / GIB:.1f} GiB on a GPU, {duration(seconds)}, {human_bytes(disk)} in {fleet.folder}"
    )
    return "\n".join([*lines, ESTIMATES])
