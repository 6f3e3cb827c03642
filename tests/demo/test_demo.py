"""``muscle-hf demo``, small: what it trains, writes and says, and that its commands run as they are printed."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from muscle_hf.cli.main import main
from muscle_hf.demo import SETTINGS, TASKS, rows
from muscle_hf.demo.progress import Line, Stages
from muscle_hf.demo.run import BOTH, PAPER, both_at_inference, demo_splits, run_demo, stages
from muscle_hf.demo.story import kept, next_steps, words
from muscle_hf.evaluation import load_items, load_task, read_predictions
from muscle_hf.files import read_json
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD


@pytest.fixture
def small(monkeypatch):
    for task, settings in SETTINGS.items():
        few = {"train": 12, "transfer": 10, "test": 24, "validation": 8, "steps": 3, "epochs": 2, "batch_size": 4}
        monkeypatch.setitem(SETTINGS, task, dataclasses.replace(settings, **few))


@pytest.mark.slow
def test_the_demo_shows_all_models_and_its_commands_run(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert main(["demo", "--output", "out"]) == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(threads)
    said, folder = capsys.readouterr().out, Path("out/routing-seed0")
    told = re.findall(r"^ *(\d+) %(?:, about \d+:\d\d left)?: (.*)$", said, re.MULTILINE)
    for process in stages("routing"):  # each in its own order
        names = [name for name, _ in process]
        assert [name for _, name in told if name in names] == names
    assert len(told) == sum(map(len, stages("routing"))) and "it/s" not in said
    assert told[0][0] == "0" and int(told[-1][0]) > 80
    demo = run_demo("routing", 0, "out")  # what is done is not repeated
    assert [row.model for row in demo.result.rows] == [OLD, NEW, CONTROL, PAPER, COMPAT, BOTH]
    for name in demo.predictions:
        assert read_predictions(folder / "predictions" / f"{name}.jsonl") == list(demo.predictions[name])
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    trained = {name: read_json(folder / name / "muscle_provenance.json") for name in ("muscle", "paper/muscle")}
    assert {name: found["metrics"]["step"] for name, found in trained.items()} == dict.fromkeys(trained, 3)
    assert trained["muscle"]["objective"]["mask"] == "mean" and trained["muscle"]["data"]["transfer"]["rows"] == 10
    assert trained["paper/muscle"]["objective"]["mask"] == "student_wrong"
    assert "transfer" not in trained["paper/muscle"]["data"]
    assert (folder / "control" / "adapter_model.safetensors").is_file()
    for what, command in next_steps(demo):
        assert f"{what}:\n{command}\n" in said
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
    assert rows("routing", "test", count=1)[0]["text"] in done.stdout


@pytest.mark.parametrize("task", TASKS)
def test_the_files_for_one_s_own_update_hold_the_demo_s(small, task, tmp_path, monkeypatch):
    from muscle_hf.demo.run import demo_settings, write_own

    monkeypatch.chdir(tmp_path)
    file = write_own(task, 1, demo_settings(task, 1, Path("demo"))).resolve()
    monkeypatch.chdir("demo/own")  # they can be used from any folder
    settings = load_settings(file)
    described = load_task(settings.task)
    assert dataclasses.replace(described, to_item=TASKS[task].to_item, name=task) == TASKS[task]
    items = load_items(described, settings.data.source, "train")
    splits = demo_splits(task, 1)
    assert items[:12] == splits.train and items[12:] == splits.transfer
    assert load_items(described, settings.data.source, "test") == splits.test


def test_the_bound_is_the_mean_of_both_models_probabilities():
    from muscle_hf.evaluation import Prediction

    def one(*p, target=0):
        return Prediction(
            "t", "1", int(np.argmax(p)), target, False, None, "acc", "h", log_likelihoods=np.log(p).tolist()
        )

    old, new = [one(0.5, 0.3, 0.2), one(0.6, 0.4)], [one(0.1, 0.2, 0.7), one(0.45, 0.55)]
    asked = both_at_inference(old, new)
    assert [(row.prediction, row.correct, row.origin) for row in asked] == [(2, False, None), (0, True, None)]


def test_what_is_kept_is_counted_of_what_the_update_breaks():
    from types import SimpleNamespace

    from muscle_hf.evaluation import Prediction

    def answers(*right):
        return [
            Prediction("t", str(i), int(not r), 0, bool(r), None, "acc", "h", choices=["a", "b"])
            for i, r in enumerate(right)
        ]

    predictions = {OLD: answers(1, 1, 1, 1, 0), NEW: answers(0, 0, 1, 1, 1), COMPAT: answers(1, 0, 0, 1, 0)}
    demo = SimpleNamespace(
        predictions={**predictions, CONTROL: answers(1, 1, 1, 1, 1)},
        result=SimpleNamespace(task="routing", metric="acc"),
    )
    assert kept(demo, COMPAT) == (2, 1, 1) and kept(demo, CONTROL) == (2, 2, 0)
    assert "Of 2 items" in words(demo) and "keeps 1 and breaks 1" in words(demo)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_line_says_how_far_it_is(terminal):
    written = io.StringIO()
    line = Line(500, Console(file=written, width=80, force_terminal=terminal))
    here, beside = Stages([("a", 100), ("b", 100), ("c", 200)], line.move), Stages([("d", 100)], line.move)
    with line.shown:
        for stage in (here, beside, here):
            stage.next()
        for stage in (here, beside):
            for _ in range(50):
                stage.on_step_end(None, None, None)
        assert line.shown.tasks[0].percentage == pytest.approx(40)
        here.next()
        assert line.shown.tasks[0].percentage == pytest.approx(50)
        for stage in (here, beside):
            stage.next()
        assert line.shown.finished
    lines = [line.strip() for line in written.getvalue().splitlines()]
    if terminal:
        assert " left: c" in written.getvalue()
    else:
        assert lines[:2] == ["0 %: a", "0 %: d"] and len(lines) == 4
        assert re.fullmatch(r"50 %, about 0:0\d left: c", lines[3])


@pytest.mark.slow
def test_what_fails_in_the_second_process_ends_the_demo(small, tmp_path):
    (tmp_path / "routing-seed0").mkdir()
    (tmp_path / "routing-seed0" / "control").write_text("in the way of a folder")
    with pytest.raises(FileExistsError):
        run_demo("routing", 0, tmp_path)
    assert not [process for process in multiprocessing.active_children() if process.is_alive()]
