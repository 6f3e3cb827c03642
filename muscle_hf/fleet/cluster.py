"""A fleet on several machines: a step is a task of a Ray cluster, or a task is a job of SLURM."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.fleet.results import fetch
from muscle_hf.fleet.run import Say, do_steps
from muscle_hf.fleet.settings import SLURM, Fleet, FleetTask
from muscle_hf.fleet.task import GATE, TaskRun, make_run, noted, read_state, steps_of
from muscle_hf.pipeline import steps
from muscle_hf.teachers.pool import BasePool, keeping

_POOL = BasePool()  # of this process, which does many steps


def on_ray(
    fleet: Fleet, runs: dict[str, TaskRun], say: Say, done: Callable[[], None], *, address: str | None = None
) -> None:
    """Steps on a Ray cluster, at ``address``, else that of the environment (``RAY_ADDRESS``), else a new one on this
    machine; of one task one after the other, of several side by side.

    A step whose process or machine dies is tried again as often as ``steps.retries`` says, and goes on from what it
    had saved. Where machines share no ``output_dir``, the fleet's ``results`` name a place that they do.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError("ray", "ray", "--executor ray") from error
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address=address)
    wanted = fleet.settings.steps
    do = ray.remote(_do).options(num_gpus=wanted.gpus, num_cpus=wanted.cpus, max_retries=wanted.retries)
    pending: dict[Any, FleetTask] = {}
    for task in (task for task in fleet.tasks if task.name in runs):
        last: Any = True
        for step in steps_of(task):
            last = do.remote(last, task, [step], os.getcwd())
        pending[last] = task
    try:
        while pending:
            (ready, *_), _ = ray.wait(list(pending), num_returns=1)
            _ended(pending.pop(ready), lambda ready=ready: ray.get(ready), say)
            done()
    finally:
        for reference in pending:
            ray.cancel(reference)


def on_slurm(
    fleet: Fleet, runs: dict[str, TaskRun], say: Say, done: Callable[[], None], *, cluster: str | None = None
) -> None:
    """Tasks as jobs of SLURM, or another ``cluster`` of submitit (``local``: processes of this machine); one that is
    preempted goes into the queue again, one that is out of time as often as ``steps.retries`` says, and each goes on
    from what it had saved."""
    try:
        import submitit
    except ImportError as error:
        raise MissingDependencyError("submitit", "slurm", "--executor slurm") from error

    class Job(submitit.helpers.Checkpointable):
        """A task, which is put into the queue again where it was preempted."""

        def __call__(self, task: FleetTask, folder: str) -> bool:
            return _do(True, task, steps_of(task), folder)

    wanted, folder = fleet.settings.steps, fleet.folder / SLURM
    each = {"cpus_per_task": math.ceil(wanted.cpus), "gpus_per_node": math.ceil(wanted.gpus), "timeout_min": 240}
    try:
        queue = submitit.AutoExecutor(folder, cluster or "slurm", slurm_max_num_timeout=wanted.retries)
        queue.update_parameters(**{**each, **wanted.slurm})
    except (RuntimeError, NameError, AssertionError, ValueError) as error:
        raise MuscleError(f"--executor slurm: {error}") from error
    with queue.batch():
        jobs = [(queue.submit(Job(), task, os.getcwd()), task) for task in fleet.tasks if task.name in runs]
    try:
        for job in submitit.helpers.as_completed([job for job, _ in jobs]):
            _ended(next(task for other, task in jobs if other is job), job.result, say)
            done()
    finally:
        for job, _ in jobs:
            if not job.done():
                job.cancel()


def _ended(task: FleetTask, result: Callable[[], bool], say: Say) -> None:
    try:
        fetch(task.results, task.folder)
        whole = result()
    except Exception as error:  # whatever it is, its process is gone for good
        whole, state = False, read_state(task)
        lost = next((step for step in steps_of(task) if state.get(step, {}).get("state") != "done"), GATE)
        with contextlib.suppress(Exception), noted(task, lost):
            raise error
    say(f"{task.name}: {'done' if whole else 'failed, the task is left'}")


def _do(before: bool, task: FleetTask, names: list[str], folder: str) -> bool:
    """Some steps, in a process of the cluster; gives whether they and all before them were done."""
    if not before:
        return False
    steps.hush()
    if os.path.isdir(folder):
        os.chdir(folder)
    if (url := task.results) is not None:
        fleet = sha256(url.rpartition("/")[0].encode()).hexdigest()[:16]
        scratch = Path(tempfile.gettempdir(), "muscle-fleet", fleet, task.name)
        task = replace(task, settings=replace(task.settings, output_dir=str(scratch)))
        fetch(url, task.folder)
    with keeping(_POOL):
        return do_steps(task, make_run(task, print), names, print)
