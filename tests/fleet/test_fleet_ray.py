"""A fleet on a real Ray cluster of two workers on this machine, one of which dies in the midst of a step."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from fleet_world import content, entry, rows_in, written

from muscle_hf.fleet.cluster import on_ray
from muscle_hf.fleet.lock import LOCK_FILE, Lock
from muscle_hf.fleet.run import run_fleet, status_of
from muscle_hf.fleet.settings import load_fleet
from muscle_hf.fleet.task import outcome_of, read_state, steps_of

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, log_to_driver=False)
    yield
    ray.shutdown()


def two_tasks(folder, steps, *words):
    rows = rows_in(folder / "rows")
    settings = content(folder / "v2", entry(rows, "mail"), entry(rows, "chat", 12))
    settings["defaults"]["training"]["max_steps"] = steps
    return load_fleet(written(folder / "fleet.yaml", settings), words)


def kill_in(task, step, killed):
    """Kill the process that does a step, while it does."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        state = read_state(task).get(step, {})
        if state.get("state") == "running":
            os.kill(state["pid"], signal.SIGKILL)
            killed.append(state["pid"])
            return
        time.sleep(0.01)


@pytest.mark.slow
def test_a_worker_that_dies_in_a_step_costs_that_step_only(cluster, tmp_path):
    fleet, killed = two_tasks(tmp_path, 40), []
    mail, chat = fleet.tasks
    watch = threading.Thread(target=kill_in, args=(chat, "new", killed))
    watch.start()
    code = run_fleet(fleet, say=lambda text: None, executor=on_ray)
    watch.join()
    assert code in (0, 1, 3) and killed
    for task in (mail, chat):
        assert status_of(task) == ("done", "")
    states = {task.name: read_state(task) for task in (mail, chat)}
    assert states["chat"]["new"]["pid"] != killed[0]
    assert states["chat"]["old"]["state"] == "done"
    pids = {state[step]["pid"] for state in states.values() for step in state} | set(killed)
    assert len(pids) > 1 and os.getpid() not in pids
    assert list(Lock.read(tmp_path / "v2" / LOCK_FILE).tasks) == ["mail", "chat"]


@pytest.mark.slow
def test_machines_that_share_no_folder_share_a_url(cluster, tmp_path):
    here = two_tasks(tmp_path, 1, "--results", (tmp_path / "bucket").as_uri())
    assert run_fleet(here, ["mail"], lambda text: None, on_ray) in (0, 1, 3)
    task = here.tasks[0]
    assert outcome_of(task) is not None and set(read_state(task)) == set(steps_of(task))
    one, other = (
        folder / "mail" / "muscle" / "adapter_model.safetensors" for folder in (tmp_path / "v2", tmp_path / "bucket")
    )
    assert one.read_bytes() == other.read_bytes()
