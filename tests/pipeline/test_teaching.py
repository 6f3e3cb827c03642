"""How a run's teachers are asked: from a cache where that is cheaper, with the same result, and said in one line."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from muscle_hf.cli.main import main
from muscle_hf.pipeline import steps, teaching
from muscle_hf.pipeline.config import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    SplitSettings,
    TransferSettings,
)
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.smoke import tiny_model

TASK = "kind: generation\nprompt: '{q}'\nreference: a\nmax_new_tokens: 2\n"
TRAINING = {"per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True, "num_train_epochs": 3}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    (folder / "task.yaml").write_text(TASK)
    rows = ({"q": f"{i} pears and {i} plums", "a": f"{2 * i} fruits"} for i in range(14))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed, name in enumerate(("v1", "v2")):
        tiny_model(folder / name, seed)
    return folder


def settings(world, tmp_path, training=None, **data):
    places = {"train": SplitSettings("a", 0, 5), "test": SplitSettings("a", 12), **data}
    return RunSettings(
        ModelSettings(str(world / "v1")),
        ModelSettings(str(world / "v2")),
        str(tmp_path / "run"),
        task=str(world / "task.yaml"),
        data=DataSettings(str(world / "rows.jsonl"), **places),
        lora=LoraSettings(r=2),
        training={**TRAINING, **(training or {})},
    )


@pytest.mark.parametrize(
    ("training", "data", "free", "own"),
    [
        ({}, {}, None, True),
        ({"num_train_epochs": 1}, {}, None, False),
        ({"max_steps": 2}, {}, None, False),
        ({"max_steps": 3}, {}, None, True),
        ({"teacher_cache": None}, {}, None, False),
        ({"teacher_cache": "elsewhere"}, {}, None, False),
        ({}, {"transfer": TransferSettings("a", 5, 2, answers="old")}, None, True),
        ({}, {"transfer": TransferSettings("a", 5, 2, answers="student")}, None, False),
        ({}, {}, 4000, False),
    ],
)  # fmt: skip
def test_the_way_is_chosen_by_epochs_settings_and_disk(training, data, free, own, world, tmp_path, monkeypatch):
    if free is not None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(free, 0, free))
    found = Run.of(settings(world, tmp_path, training, **data)).teaching()
    folder = str(tmp_path / "run" / "teacher_cache")
    assert found.training == ({"teacher_cache": folder} if own else {})
    assert (folder in found.why) is own
    assert ("elsewhere" in found.why) is (training.get("teacher_cache") == "elsewhere")


def test_several_processes_see_fewer_epochs_in_as_many_steps(world, tmp_path):
    run = Run.of(settings(world, tmp_path, {"max_steps": 2}))
    assert [bool(run.teaching(processes).training) for processes in (1, 2)] == [False, True]


def test_a_cached_run_trains_the_same_adapter_and_says_so_before(world, tmp_path, capsys):
    trained = {}
    for name, training in (("asked", {"teacher_cache": None}), ("chosen", {})):
        said: list[str] = []
        asked = settings(world, tmp_path / name, training)
        run = Run.of(asked, said.append)
        trained[name] = load_file(run.adapter("muscle") / "adapter_model.safetensors")
        assert [line for line in said if line.startswith("Teachers: ")] == [f"Teachers: {run.teaching().why}"] or (
            name == "chosen"
        )
        assert (tmp_path / name / "run" / "teacher_cache").exists() is (name == "chosen")
    assert all(torch.allclose(weight, trained["chosen"][key], atol=1e-6) for key, weight in trained["asked"].items())
    (tmp_path / "run.yaml").write_text(json.dumps({k: v for k, v in asked.to_dict().items() if v is not None}))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    assert f"Teachers: {Run.of(asked).teaching().why}" in capsys.readouterr().out


def test_models_that_cannot_be_cached_compute_as_before(world, tmp_path, monkeypatch):
    changed = settings(world, tmp_path)
    shutil.copytree(world / "v1", tmp_path / "dynamic")
    config = AutoConfig.from_pretrained(tmp_path / "dynamic")
    config.rope_parameters = {**config.rope_parameters, "rope_type": "dynamic", "factor": 2.0}
    config.save_pretrained(tmp_path / "dynamic")
    changed.old.base = str(tmp_path / "dynamic")
    said: list[str] = []
    run = Run.of(changed, said.append)
    assert (run.adapter("muscle") / "adapter_model.safetensors").is_file()
    (line,) = [line for line in said if line.startswith("Teachers: ")]
    assert "both models" in line and "dynamic" in line
    # What is only found out when the models are there.
    monkeypatch.setattr(teaching, "why_excluded", lambda config: None)
    changed.output_dir = str(tmp_path / "again")
    run = Run.of(changed, said.append)
    assert run.teaching().training and (run.adapter("muscle") / "adapter_model.safetensors").is_file()
    assert "both models" in said[-1] and "dynamic" in said[-1]


@pytest.mark.parametrize(("given", "expected"), [({}, 3 * 3), ({"max_steps": 2}, 2)])
def test_the_control_takes_as_many_steps_as_with_transfer_rows(given, expected, world, tmp_path, monkeypatch):
    taken = {}

    def counted(model, data, arguments, *, name, **more):
        taken[name] = arguments.max_steps
        return original(model, data, arguments, name=name, **more)

    original = steps.train_plainly
    monkeypatch.setattr(steps, "train_plainly", counted)
    transfer = TransferSettings("a", 5, 2, answers="old")
    run = Run.of(settings(world, tmp_path, {"teacher_cache": None, **given}, transfer=transfer), lambda line: None)
    for name in ("control", "muscle"):
        run.adapter(name)
    assert (
        taken["control"] == expected == json.loads((run.folder / "muscle" / "muscle_step.json").read_text())["steps"]
    )
    assert taken["v2"] == given.get("max_steps", -1)
