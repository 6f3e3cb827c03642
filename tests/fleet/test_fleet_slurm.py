"""A fleet as jobs of submitit, whose local executor runs them as processes of this machine; one of them dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial

import pytest
from fleet_world import content, entry, rows_in, written

from muscle_hf.errors import MuscleError
from muscle_hf.fleet.cluster import on_slurm
from muscle_hf.fleet.run import run_fleet, status_of
from muscle_hf.fleet.settings import load_fleet
from muscle_hf.fleet.task import outcome_of, read_state

submitit = pytest.importorskip("submitit")


def quiet(text):
    """Says nothing."""


@pytest.mark.slow
def test_a_job_that_dies_is_its_task_alone_and_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(submitit.helpers.as_completed, "__defaults__", (None, 0.5))
    rows = rows_in(tmp_path / "rows")
    settings = content(tmp_path / "v2", entry(rows, "mail"), entry(rows, "chat", 12))
    settings["steps"] = {"slurm": {"timeout_min": 9, "slurm_partition": "gpu"}}
    fleet = load_fleet(written(tmp_path / "fleet.yaml", settings))
    mail, chat = fleet.tasks

    def kill():
        deadline = time.monotonic() + 300
        while read_state(chat).get("new", {}).get("state") != "running" and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(read_state(chat)["new"]["pid"], signal.SIGKILL)

    watch = threading.Thread(target=kill)
    watch.start()
    assert run_fleet(fleet, say=quiet, executor=partial(on_slurm, cluster="local")) == 1
    watch.join()
    assert status_of(mail) == ("done", "") and outcome_of(mail) is not None
    assert status_of(chat)[0] == "failed" and read_state(chat)["old"]["state"] == "done"
    assert read_state(mail)["new"]["pid"] != os.getpid()
    took = (chat.folder / "old" / "adapter_model.safetensors").stat().st_mtime_ns
    assert run_fleet(fleet, ["chat"], quiet, partial(on_slurm, cluster="local")) in (0, 1, 3)
    assert status_of(chat) == ("done", "")
    assert (chat.folder / "old" / "adapter_model.safetensors").stat().st_mtime_ns == took


@pytest.mark.parametrize("asked", [{}, {"slurm_partitoin": "gpu"}])
def test_no_slurm_and_a_parameter_that_is_none_are_told(asked, tmp_path):
    settings = content(tmp_path / "v2", steps={"slurm": asked})
    fleet = load_fleet(written(tmp_path / "fleet.yaml", settings))
    with pytest.raises(MuscleError, match="slurm_partitoin" if asked else "srun"):
        on_slurm(fleet, {}, quiet, lambda: None, cluster="local" if asked else None)
