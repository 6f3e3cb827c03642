"""A fleet on several machines: every step is a task of a Ray cluster, which places it and tries it again."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from muscle_hf.errors import MissingDependencyError
from muscle_hf.fleet.run import Say, do_steps
from muscle_hf.fleet.settings import Fleet, FleetTask
from muscle_hf.fleet.task import TaskRun, make_run, noted, read_state, steps_of
from muscle_hf.pipeline import steps
from muscle_hf.teachers.pool import BasePool, keeping

_POOL = BasePool()  # of this process, which does many steps


class OnRay:
    """Steps on a Ray cluster; of one task one after the other, of several side by side.

    A step whose process or machine dies is tried again as often as ``steps.retries`` says, and goes on from what it
    had saved.

    Args:
        address: Of the cluster; None: that of the environment (``RAY_ADDRESS``), or a new one on this machine.
        results: A URL of fsspec (``hf://``, ``s3://``, ...) that every machine reads and writes where they share no
            folder; None: they share ``output_dir``, and the folder that the command was started in.
    """

    def __init__(self, address: str | None = None, results: str | None = None):
        self.address, self.results = address, results

    def __call__(self, fleet: Fleet, runs: dict[str, TaskRun], say: Say, done: Callable[[], None]) -> None:
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError as error:
            raise MissingDependencyError("ray", "ray", "--executor ray") from error
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(address=self.address)
        wanted = fleet.settings.steps
        do = ray.remote(_do).options(num_gpus=wanted.gpus, num_cpus=wanted.cpus, max_retries=wanted.retries)
        tasks = {task.name: task for task in fleet.tasks if task.name in runs}
        pending: dict[Any, FleetTask] = {}
        for task in tasks.values():
            last: Any = True
            for step in steps_of(task):
                last = do.remote(last, task, step, os.getcwd(), self.results)
            pending[last] = task
        try:
            while pending:
                (ready, *_), _ = ray.wait(list(pending), num_returns=1)
                task = pending.pop(ready)
                if self.results is not None:
                    fetch(self.results, task.name, task.folder)
                try:
                    whole = ray.get(ready)
                except RayError as error:
                    whole = _note_lost(task, error)
                say(f"{task.name}: {'done' if whole else 'failed, the task is left'}")
                done()
        finally:
            for reference in pending:
                ray.cancel(reference)


def _note_lost(task: FleetTask, error: Exception) -> bool:
    """Note that a step was lost with its process for good."""
    state = read_state(task)
    lost = next((step for step in steps_of(task) if state.get(step, {}).get("state") != "done"), steps_of(task)[-1])
    with contextlib.suppress(Exception), noted(task, lost):
        raise error
    return False


def _do(before: bool, task: FleetTask, step: str, folder: str, results: str | None) -> bool:
    """One step, in a process of the cluster; gives whether it and all before it were done."""
    if not before:
        return False
    steps.hush()
    if os.path.isdir(folder):
        os.chdir(folder)
    start = time.time()
    if results is not None:
        scratch = Path(tempfile.gettempdir(), "muscle-fleet", sha256(results.encode()).hexdigest()[:16], task.name)
        task = replace(task, settings=replace(task.settings, output_dir=str(scratch)))
        fetch(results, task.name, task.folder)
    try:
        with keeping(_POOL):
            return do_steps(task, make_run(task, print), [step], print)
    finally:
        if results is not None:
            leave(task.folder, results, task.name, start)


# ---- Results where no folder is shared ----


def fetch(results: str, name: str, folder: Path) -> None:
    """Bring what a task has at a URL into its folder on this machine."""
    import fsspec

    files, root = fsspec.core.url_to_fs(f"{results.rstrip('/')}/{name}")
    if files.exists(root):
        for path in files.find(root):
            target = folder / os.path.relpath(path, root)
            target.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(target))


def leave(folder: Path, results: str, name: str, since: float) -> None:
    """Put the files of a task that are new since a time to a URL; checkpoints are for this machine alone."""
    import fsspec

    files, root = fsspec.core.url_to_fs(f"{results.rstrip('/')}/{name}")
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        private = any(part.startswith((".", "checkpoint-")) for part in place.parts)
        if path.is_file() and not private and path.stat().st_mtime >= since - 1:
            target = f"{root}/{place.as_posix()}"
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
            files.put_file(str(path), target)
