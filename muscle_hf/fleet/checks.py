"""Everything that is wrong with a fleet, found before anything of it is run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Task
from muscle_hf.fleet.lock import base_hash
from muscle_hf.fleet.settings import Fleet, FleetTask
from muscle_hf.fleet.task import TaskRun, make_run
from muscle_hf.metrics.power import items_for_rate
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.steps import config_of
from muscle_hf.teachers.blueprint import blueprint
from muscle_hf.teachers.checks import same_name
from muscle_hf.teachers.loading import find_adapter, put_adapter


def checked_runs(fleet: Fleet, names: list[str], say: Callable[[str], None]) -> dict[str, TaskRun]:
    """The runs of some tasks of a fleet, with their rows loaded; all that is wrong with any of them is told in one
    MuscleError."""
    problems = [f"{where}: {text}" for where, text in fleet.problems if where in names]
    runs: dict[str, TaskRun] = {}
    for task in fleet.tasks:
        if task.name in names:
            problems += [f"{task.name}: {text}" for text in _problems_of(task, runs, say)]
    if problems:
        raise MuscleError(
            f"{len(problems)} problem{'s' * (len(problems) > 1)}, nothing was run:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return runs


def _problems_of(task: FleetTask, runs: dict[str, TaskRun], say: Callable[[str], None]) -> Iterator[str]:
    """What is wrong with a task, whose run is added to those that were made."""
    for name, side in (("v1", task.settings.old), ("v2", task.settings.new)):
        try:
            _check_adapter(side)
        except (MuscleError, OSError) as error:
            yield f"{name}: {error}"
    try:
        runs[task.name] = make_run(task, say)
        _check_items(task, runs[task.name])
    except (MuscleError, OSError) as error:
        yield str(error)


def _check_adapter(side: ModelSettings) -> None:
    """Refuse an adapter of another base, by its layers and by the base that it records."""
    adapter = find_adapter(side.adapter, side.adapter_revision, {}) if side.adapter else None
    if adapter is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights without content have none to copy
        put_adapter(adapter, blueprint(config_of(side)))
    recorded = adapter.config.base_model_name_or_path
    if not recorded or same_name(recorded, side.base):
        return
    hashes = [base_hash(recorded, adapter.config.revision), base_hash(side.base, side.revision)]
    # Of a base that has moved nobody can tell.
    moved = None in hashes and (Path(recorded).is_absolute() or Path(side.base).is_dir())
    if not moved and (None in hashes or hashes[0] != hashes[1]):
        raise MuscleError(f"the adapter {adapter.name} was trained for the base {recorded}, which is not {side.base}")


def _check_items(task: FleetTask, run: TaskRun) -> None:
    limit, items = task.budget.limit("max_nfr", cast("Task", run.task).name), len(run.splits.test)
    if limit is None or limit >= 1:
        return
    # The best that can happen is an update without a negative flip.
    needed = items_for_rate(limit, 0.0, level=task.budget.level)
    if needed is None or needed > items:
        enough = "no number of items decides that" if needed is None else f"it takes {needed:,} at least"
        raise MuscleError(
            f"max_nfr {limit:.2%} cannot be shown to be kept with {items:,} test items, even if none flips: {enough}; "
            "raise the limit, or test on more rows"
        )
