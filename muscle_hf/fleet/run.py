"""Running a fleet: task by task, step by step, and what is written for all of them together."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from muscle_hf import __version__
from muscle_hf.errors import MuscleError
from muscle_hf.files import alone, write_text
from muscle_hf.fleet import page
from muscle_hf.fleet.checks import checked_runs
from muscle_hf.fleet.lock import LOCK_FILE, Lock, Version
from muscle_hf.fleet.results import fetch, leave, put, results_at
from muscle_hf.fleet.settings import Fleet, FleetTask
from muscle_hf.fleet.task import HOLD, REPORT, SHIPPED, Outcome, TaskRun, noted, outcome_of, read_state, steps_of
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.run import RESULT_FILE
from muscle_hf.pipeline.table import COMPAT, NEW, OLD
from muscle_hf.teachers.pool import BasePool, keeping
from muscle_hf.words import did_you_mean

PAGE_FILE = "fleet.html"
Say = Callable[[str], None]
# Does the steps of some tasks, and calls the last argument whenever one is finished; the failure of one stops its own
# further steps only.
Executor = Callable[[Fleet, dict[str, TaskRun], Say, Callable[[], None]], None]


def chosen(fleet: Fleet, only: Sequence[str] = ()) -> list[str]:
    """The names of the tasks that are meant, among them such as something is wrong with; all by default."""
    names = list(dict.fromkeys([*(task.name for task in fleet.tasks), *(where for where, _ in fleet.problems)]))
    for name in only:
        if name not in names:
            raise MuscleError(f"--only: the fleet has no task {name!r}; {did_you_mean(name, names)}")
    return [name for name in names if not only or name in only]


def run_fleet(fleet: Fleet, only: Sequence[str] = (), say: Say = print, executor: Executor | None = None) -> int:
    """Run the tasks of a fleet that are not done, and write the page and the lock; what is wrong with the settings is
    told before anything is run.

    Gives 0 if every task ships something, 1 if one is held or failed, 3 if all that are held have too few items.
    """
    runs = checked_runs(fleet, chosen(fleet, only), say)
    fleet.folder.mkdir(parents=True, exist_ok=True)
    fetch_all(fleet)
    write_all(fleet)  # where results cannot be kept is better known now

    def done() -> None:
        try:
            write_all(fleet)
        except MuscleError as error:
            say(str(error))  # a network may be back later

    try:
        (executor or here)(fleet, runs, say, done)
    finally:
        write_all(fleet)
    return exit_code(fleet, list(runs))


def here(fleet: Fleet, runs: dict[str, TaskRun], say: Say, done: Callable[[], None]) -> None:
    """Every step in this process, which loads each base once."""
    tasks = {task.name: task for task in fleet.tasks}
    with keeping(BasePool()):
        for place, (name, run) in enumerate(runs.items(), start=1):
            say(f"[{place}/{len(runs)}] {name}")
            do_steps(tasks[name], run, steps_of(tasks[name]), say)
            done()


def do_steps(task: FleetTask, run: TaskRun, names: Sequence[str], say: Say) -> bool:
    """Do steps of one task in order up to the first that fails; gives whether none did."""
    for step in names:
        try:
            try:
                with noted(task, step):
                    run.do(step, task)
            finally:
                leave(task.results, task.folder)
        except Exception as error:  # whatever it is, it is this task's alone
            said = str(error) if isinstance(error, (MuscleError, OSError)) else traceback.format_exc()
            say(f"{task.name}: {step} failed, the task is left: {said}")
            steps.free_memory()
            return False
    return True


def fetch_all(fleet: Fleet) -> None:
    """Bring what other machines have done, where the fleet's results are kept at a URL."""
    with results_at(fleet.settings.results):
        for task in fleet.tasks:
            fetch(task.results, task.folder)


def exit_code(fleet: Fleet, names: Sequence[str]) -> int:
    """What the command ends with, see :func:`run_fleet`."""
    found = [outcome_of(task) for task in fleet.tasks if task.name in names]
    if None in found or any(one and one.verdict == HOLD and not one.undecided for one in found):
        return 1
    return 3 if any(one and one.undecided for one in found) else 0


# ---- For all together ----


def status_of(task: FleetTask) -> tuple[str, str]:
    """How far a task is, in a word (``done``, ``failed``, ``running``, ``stopped``, ``open``), and where."""
    state, wanted = read_state(task), steps_of(task)
    for step in wanted:
        found = state.get(step, {"state": "open"})
        if found["state"] == "done":
            continue
        how = found["state"]
        if how == "running":
            with contextlib.suppress(MuscleError), alone(task.folder / RESULT_FILE):
                how = "stopped"  # nobody is at it: its process was killed
        place = f"{step}, {wanted.index(step)} of {len(wanted)} steps done"
        return how, f"{place}: {found['error']}" if "error" in found else place
    return "done", ""


def line_of(task: FleetTask) -> page.Line:
    """A task as the page and the terminal show it."""
    took = sum(step.get("seconds", 0.0) for step in read_state(task).values())
    return page.Line(task.name, outcome_of(task), status_of(task), took)


def write_all(fleet: Fleet) -> None:
    """The page and the lock, of what is done by now."""
    lines = [line_of(task) for task in fleet.tasks]
    # What no task of this fleet has shipped, users see as before.
    entries = dict(fleet.lock.tasks) if fleet.lock else {}
    for task, line in zip(fleet.tasks, lines, strict=True):
        if line.outcome is not None:
            entries[task.name] = _entry(task, line.outcome, fleet)
    Lock(entries, asdict(fleet.settings.update), __version__).write(fleet.folder)
    write_text(fleet.folder / PAGE_FILE, page.render(fleet.settings.update, lines))
    if (url := fleet.settings.results) is not None:
        with results_at(url):
            put(url, fleet.folder, [PAGE_FILE, LOCK_FILE])


def _entry(task: FleetTask, outcome: Outcome, fleet: Fleet) -> dict[str, Any]:
    kind = fleet.lock.tasks[task.name]["now"].kind if fleet.lock and task.name in fleet.lock.tasks else "first"
    old, ships = _version(task, OLD, kind), SHIPPED[outcome.verdict]
    now = old if ships == OLD else _version(task, ships, "plain" if ships == NEW else "compatible")
    return {
        "verdict": outcome.verdict,
        "reason": outcome.reason,
        "items": outcome.items,
        "accuracy": {name: found.value for name, found in outcome.quality.items()},
        "nfr": {name: found.value for name, found in outcome.now.nfr.items()},
        "report": f"{task.name}/{REPORT}",
        "now": now,
        "ancestors": task.ancestors if ships == OLD else [*task.ancestors, old],
    }


def _version(task: FleetTask, model: str, kind: str) -> Version:
    side = task.settings.old if model == OLD else task.settings.new
    if model == COMPAT or (side.is_here and not side.adapter):
        side = replace(side, adapter=str(task.folder / model), adapter_revision=None)
    return Version.of(side, kind)
