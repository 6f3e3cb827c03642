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
from muscle_hf.teachers.loading import AdapterFolder, find_adapter, put_adapter


def checked_runs(fleet: Fleet, names: list[str], say: Callable[[str], None]) -> dict[str, TaskRun]:
    """The runs of some tasks of a fleet, with their rows loaded.

    Raises:
        MuscleError: Anything is wrong with any of them; all of it is told.
    """
    problems = [f"{where}: {text}" for where, text in fleet.problems if where in names]
    runs: dict[str, TaskRun] = {}
    for task in fleet.tasks:
        if task.name not in names:
            continue
        found = list(_problems_of(task))
        try:
            run = runs[task.name] = make_run(task, say)
            found += _undecidable(task, run)
        except (MuscleError, OSError) as error:
            found.append(str(error))
        problems += [f"{task.name}: {text}" for text in found]
    if problems:
        raise MuscleError(
            f"{len(problems)} problem{'s' * (len(problems) > 1)}, nothing was run:\n"
            + "\n".join(f"  - {problem}" for problem in problems)
        )
    return runs


def _problems_of(task: FleetTask) -> Iterator[str]:
    sides = {"v1": task.settings.old, "v2": task.settings.new}
    for name, side in sides.items():
        try:
            adapter = find_adapter(side.adapter, side.adapter_revision, {}) if side.adapter else None
            if adapter is not None and (text := _other_base(adapter, side)):
                yield f"{name}'s adapter {side.adapter}: {text}"
        except (MuscleError, OSError) as error:
            yield f"{name}: {error}"


def _other_base(adapter: AdapterFolder, side: ModelSettings) -> str | None:
    """Why an adapter is one of another base, by the base that it records; raises where its layers say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that weights without content have none to copy
        put_adapter(adapter, blueprint(config_of(side)))
    recorded = adapter.config.base_model_name_or_path
    if not recorded or same_name(recorded, side.base):
        return None
    hashes = [base_hash(recorded, adapter.config.revision), base_hash(side.base, side.revision)]
    if None not in hashes:
        return None if hashes[0] == hashes[1] else f"it was trained for the base {recorded}, which is not {side.base}"
    if Path(recorded).is_absolute() or Path(side.base).is_dir():
        return None  # of a base that has moved nobody can tell
    return f"it records the base {recorded}, not {side.base}"


def _undecidable(task: FleetTask, run: TaskRun) -> Iterator[str]:
    limit, items = task.budget.limit("max_nfr", cast("Task", run.task).name), len(run.splits.test)
    if limit is None or limit >= 1:
        return
    # The best that can happen is an update without a negative flip.
    needed = items_for_rate(limit, 0.0, level=task.budget.level)
    if needed is None or needed > items:
        enough = "no number of items decides that" if needed is None else f"it takes {needed:,} at least"
        yield (
            f"max_nfr {limit:.2%} cannot be shown to be kept with {items:,} test items, even if none flips: {enough}; "
            "raise the limit, or test on more rows"
        )
