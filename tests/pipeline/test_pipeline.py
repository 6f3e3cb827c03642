"""A whole run, small: task adapters, control, compatibility adapter, evaluation; and the commands around it."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil

import paths
import pytest
import torch
import yaml
from hub_server import TOKEN, card_errors, front_matter
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from muscle_hf import demo
from muscle_hf.cli.main import main
from muscle_hf.compare import measure_targets
from muscle_hf.demo.run import demo_settings, demo_splits
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import read_predictions
from muscle_hf.files import alone
from muscle_hf.hub.body import Card
from muscle_hf.pipeline.config import TransferSettings
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import load_tokenizer
from muscle_hf.pipeline.table import cells, columns, load_result_predictions, to_markdown

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The routing task on few rows, and what the run said."""
    folder = tmp_path_factory.mktemp("run")
    settings = demo_settings("routing", 0, folder)
    settings.training |= {"max_steps": 3, "per_device_train_batch_size": 4}
    whole = demo_splits("routing", 0)
    splits = Splits(whole.train[:12], whole.train[12:16], whole.test[:24])
    said: list[str] = []
    result = Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    return folder, settings, splits, result, said


def test_completion_training_leaves_the_context_out_for_every_adapter():
    from muscle_hf.pipeline.config import ModelSettings
    from muscle_hf.pipeline.data import TrainingData
    from muscle_hf.pipeline.steps import load_tokenizer

    items = demo_splits("routing", 0).train[:3]
    tokenizer = load_tokenizer(ModelSettings(str(demo.base("v2"))))
    whole = TrainingData.of(tokenizer, items, [])
    answers = TrainingData.of(tokenizer, items, [], answers_only=True)
    for item, row, plain in zip(items, answers.train, whole.train, strict=True):
        assert plain["labels"] == plain["input_ids"] == row["input_ids"]
        trained = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(trained, skip_special_tokens=True).strip() == item.target.strip()
        assert [label != -100 for label in row["labels"]] == [bool(flag) for flag in row["completion_mask"]]


def test_result_is_what_the_predictions_say(finished):
    folder, _, splits, result, _ = finished
    predictions = load_result_predictions(folder)
    assert set(predictions) == {"old", "new", "control", "muscle"}
    right = {name: [p.correct for p in rows] for name, rows in predictions.items()}
    for name in ("new", "control", "muscle"):
        row = result.row(name)
        pairs = list(zip(right["old"], right[name], strict=True))
        assert row.quality == sum(right[name]) / len(splits.test)
        assert row.nfr == sum(old and not new for old, new in pairs) / len(pairs)
        assert row.pfr == sum(new and not old for old, new in pairs) / len(pairs)
        assert row.nfr <= row.nfr_mc
    assert result.row("muscle").change.value == pytest.approx(result.row("muscle").nfr - result.row("new").nfr)
    saved = json.loads((folder / "result.json").read_text())
    assert saved["result"]["items"] == 24
    assert saved["result"]["rows"][1]["change"] is None


def test_table_has_a_row_a_model(finished):
    result = finished[3]
    assert columns("acc") == ["Model", "Accuracy", "NFR", "NFR_mc", "PFR", "Change of NFR (95 %)"]
    assert [row[0] for row in cells(result)] == ["v1", "v2", "v2 + CE (control)", "MUSCLE"]
    assert to_markdown(result).count("\n") == 6


def test_saved_adapters_are_ordinary_ones(finished):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder, _, splits, _, _ = finished
    for name in ("old", "new", "control", "muscle"):
        assert not list((folder / name).glob("**/*.bin"))
        base = AutoModelForCausalLM.from_pretrained(demo.base("v1" if name == "old" else "v2"))
        assert PeftModel.from_pretrained(base, folder / name).active_adapters == ["default"]
    provenance = json.loads((folder / "muscle" / "muscle_provenance.json").read_text())
    assert provenance["old"]["base"]["name"] == "v1"
    assert provenance["new"]["base"]["name"] == "v2"
    assert provenance["data"]["train"]["rows"] == len(splits.train)


def test_the_card_tells_the_flips_of_the_run(finished):
    folder, _, _, result, _ = finished
    text = (folder / "muscle" / "README.md").read_text()
    metrics = front_matter(text)["model-index"][0]["results"][0]["metrics"]
    told = {metric["type"]: metric["value"] for metric in metrics}
    for model, suffix in (("muscle", ""), ("new", "_v2")):
        row = result.row(model)
        expected = {"accuracy": row.quality, "nfr": row.nfr, "nfr_mc": row.nfr_mc, "pfr": row.pfr}
        for name, value in expected.items():
            assert told[name + suffix] == pytest.approx(value, abs=1e-6)
    assert Card.read(folder / "muscle").unverified == []
    assert "# Help-desk routing, v1 to v2" in text
    assert "`muscle-hf demo --task routing --seed 0`" in text
    assert front_matter(text)["license"] == "apache-2.0"
    assert str(folder) not in text
    assert card_errors(text) == []


def test_reference_cards_are_made_of_runs_and_then_of_themselves(finished, tmp_path, monkeypatch):
    folder, settings, _, _, _ = finished
    script = paths.ROOT / "model_cards" / "render.py"
    spec = importlib.util.spec_from_file_location("render_cards", script)
    render_cards = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render_cards)
    monkeypatch.setattr(render_cards, "ROOT", tmp_path)
    words = render_cards.references()["demo-routing"][1]
    assert words == settings.card
    assert "from its run" in render_cards.render("demo-routing", folder, words)
    card = tmp_path / "demo-routing" / "README.md"
    assert card.read_text() == (folder / "muscle" / "README.md").read_text()
    card.write_text("stale")
    assert "beside it" in render_cards.render("demo-routing", None, words)
    assert card.read_text() == (folder / "muscle" / "README.md").read_text()
    assert "left out" in render_cards.render("demo-refund", None, {})


def test_a_run_publishes_the_compatibility_adapter_alone(bases, tmp_path):
    settings = demo_settings("routing", 0, tmp_path / "run")
    settings.training |= {"max_steps": 1, "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 1}
    settings.training |= {"push_to_hub": True, "hub_model_id": "tester/desk", "hub_token": TOKEN}
    assert TOKEN not in repr(settings)
    whole = demo_splits("routing", 0)
    Run(settings, demo.TASKS["routing"], Splits(whole.train[:2], [], whole.test[:4]), lambda line: None).whole()
    assert {name for kind, name in bases.repos if kind == "model"} == {"tester/desk", "acme/base-v1", "acme/base-v2"}
    files = bases.repo("tester/desk").files()
    assert {"README.md", "muscle_metrics.json", "adapter_model.safetensors"} <= set(files)
    assert (
        files["adapter_model.safetensors"] == (tmp_path / "run" / "muscle" / "adapter_model.safetensors").read_bytes()
    )
    # After a step none of the four items is right, which is in doubt and no figure for programs.
    assert b"no answer of any model is right" in files["README.md"] and b"model-index" not in files["README.md"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"hub_model_id": "tester/merged", "hub_token": TOKEN}, "holds a model already"),
        ({"hub_model_id": "tester/desk", "hub_token": "hf_wrong"}, "401"),
        ({"hub_model_id": "tester/desk/routing", "hub_token": TOKEN}, "tester/desk/routing"),
    ],
)
def test_what_cannot_be_published_is_said_before_anything_is_trained(bases, tmp_path, setting, says):
    settings = demo_settings("routing", 0, tmp_path / "run")
    settings.training |= {"push_to_hub": True, **setting}
    bases.add("tester/merged", {"model.safetensors": b"w"})
    whole, said = demo_splits("routing", 0), []
    with pytest.raises(MuscleError, match=says):
        Run(settings, demo.TASKS["routing"], Splits(whole.train[:2], [], whole.test[:4]), said.append).whole()
    assert said == [] and not list(tmp_path.rglob("*.safetensors"))


def test_a_repository_is_called_like_the_run_by_default(bases, tmp_path):
    settings = demo_settings("routing", 0, tmp_path / "desk-routing")
    settings.training |= {"push_to_hub": True, "hub_token": TOKEN, "max_steps": 1}
    whole = demo_splits("routing", 0)
    Run(settings, demo.TASKS["routing"], Splits(whole.train[:2], [], whole.test[:4]), lambda line: None).whole()
    assert "README.md" in bases.repo("tester/desk-routing").files()


def test_control_takes_as_many_steps(finished):
    folder = finished[0]
    steps = json.loads((folder / "muscle" / "muscle_provenance.json").read_text())["metrics"]["step"]
    assert steps == 3
    assert (folder / "control" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("note", ["", '{"key": "', "[]"])
def test_a_step_whose_note_was_cut_off_is_done_anew_and_no_two_runs_share_a_folder(note, finished, tmp_path):
    folder, settings, splits, result, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    settings = dataclasses.replace(settings, output_dir=str(tmp_path / "run"))
    (tmp_path / "run" / "control" / "muscle_step.json").write_text(note)
    with alone(tmp_path / "run" / "result.json"), pytest.raises(MuscleError, match="another process"):
        Run(settings, demo.TASKS["routing"], splits).whole()
    said: list[str] = []
    assert Run(settings, demo.TASKS["routing"], splits, said.append).whole() == result
    assert [line for line in said if "Control" in line and "done before" not in line]
    assert sum("done before" in line for line in said) == 3


def test_what_is_done_is_not_repeated_and_what_changed_is(finished):
    folder, settings, splits, result, _ = finished
    before = {name: (folder / name / "adapter_model.safetensors").stat().st_mtime_ns for name in ("old", "muscle")}
    said: list[str] = []
    again = Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    assert sum("done before" in line for line in said) == 4
    assert again == result
    settings.training["mask"] = "old_right"
    settings.control = False
    Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    after = {name: (folder / name / "adapter_model.safetensors").stat().st_mtime_ns for name in ("old", "muscle")}
    assert after["old"] == before["old"]
    assert after["muscle"] > before["muscle"]
    provenance = json.loads((folder / "muscle" / "muscle_provenance.json").read_text())
    assert provenance["objective"]["mask"] == "old_right"


def test_a_model_that_is_left_out_is_on_no_card(finished, tmp_path):
    """The control's answers of an earlier run, to other items, are still there."""
    folder, settings, splits, _, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    fewer = dataclasses.replace(splits, test=splits.test[:20])
    settings = dataclasses.replace(settings, output_dir=str(tmp_path / "run"), control=False)
    Run(settings, demo.TASKS["routing"], fewer, lambda text: None).whole()
    assert (tmp_path / "run" / "predictions" / "control.jsonl").is_file()
    assert load_result_predictions(tmp_path / "run").keys() == {"old", "new", "muscle"}
    assert "plain training for as long" not in (tmp_path / "run" / "muscle" / "README.md").read_text()


def test_the_student_has_its_dropout_and_task_adapters_do_not_change(finished, tmp_path):
    folder, settings, splits, _, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    settings = dataclasses.replace(settings, output_dir=str(tmp_path / "run"), student_dropout=0.5, control=True)
    said: list[str] = []
    Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    done = [line.partition(":")[0] for line in said if "done before" in line]
    assert done == ["Task adapter on v1", "Task adapter on v2"]
    for name, dropout in {"old": 0.0, "new": 0.0, "control": 0.5, "muscle": 0.5}.items():
        assert json.loads((tmp_path / "run" / name / "adapter_config.json").read_text())["lora_dropout"] == dropout
        before, after = (load_file(at / name / "adapter_model.safetensors") for at in (folder, tmp_path / "run"))
        assert all(torch.equal(before[key], after[key]) for key in before) == (dropout == 0)


def test_control_and_compatibility_adapter_start_from_v1s_adapter_where_they_are_told_to(finished, tmp_path):
    """A learning rate of nearly nothing leaves them where they start."""
    folder, settings, splits, _, _ = finished
    shutil.copytree(folder, tmp_path / "run")
    training = {**settings.training, "start_from": "old", "learning_rate": 1e-9}
    task_training = {**settings.task_training, "learning_rate": settings.training["learning_rate"]}
    settings = dataclasses.replace(
        settings, output_dir=str(tmp_path / "run"), training=training, task_training=task_training, control=True
    )
    said: list[str] = []
    Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    done = [line.partition(":")[0] for line in said if "done before" in line]
    assert done == ["Task adapter on v1", "Task adapter on v2"]
    assert "Control: v1's adapter on v2, trained on with plain cross-entropy" in said
    start = load_file(tmp_path / "run" / "old" / "adapter_model.safetensors")
    for name in ("control", "muscle"):
        weights = load_file(tmp_path / "run" / name / "adapter_model.safetensors")
        assert all(torch.allclose(weights[key], start[key], atol=1e-6) for key in start)
        config = json.loads((tmp_path / "run" / name / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == settings.new.base
    assert "start_from" in (tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text()
    said.clear()
    Run(settings, demo.TASKS["routing"], splits, said.append).whole()
    assert sum("done before" in line for line in said) == 4


def test_a_start_from_v1_on_a_base_of_another_size_is_refused_before_anything_is_trained(finished, tmp_path):
    _, settings, splits, _, _ = finished
    wide = AutoConfig.from_pretrained(settings.new.base)
    wide.intermediate_size *= 2
    AutoModelForCausalLM.from_config(wide).save_pretrained(tmp_path / "wide")
    load_tokenizer(settings.new).save_pretrained(tmp_path / "wide")
    settings = dataclasses.replace(
        settings,
        output_dir=str(tmp_path / "run"),
        new=dataclasses.replace(settings.new, base=str(tmp_path / "wide")),
        training={**settings.training, "start_from": "old"},
    )
    refusal = r"start_from is 'old', but .* layers have other shapes in the bases of v1 and v2"
    with pytest.raises(MuscleError, match=refusal):
        Run(settings, demo.TASKS["routing"], splits).whole()
    assert not (tmp_path / "run").exists()


def test_a_task_adapter_with_other_weights_is_another(finished, tmp_path):
    """A run over named adapters, one of which is trained again in its place."""
    folder, settings, splits, _, _ = finished
    adapters = {name: shutil.copytree(folder / name, tmp_path / name) for name in ("old", "new")}
    sides = {name: dataclasses.replace(getattr(settings, name), adapter=str(adapters[name])) for name in adapters}
    settings = dataclasses.replace(settings, output_dir=str(tmp_path / "run"), control=False, **sides)
    said: list[str] = []

    def run():
        said.clear()
        Run(settings, demo.TASKS["routing"], splits, said.append).whole()

    run()
    assert "Compatibility adapter" in said
    run()
    assert [line.partition(":")[0] for line in said] == ["Compatibility adapter"] and "done before" in said[0]
    weights = load_file(adapters["new"] / "adapter_model.safetensors")
    changed = {name: weight * 1.01 for name, weight in weights.items()}
    save_file(changed, adapters["new"] / "adapter_model.safetensors")
    run()
    assert "Compatibility adapter" in said and not any("v1" in line for line in said)


def test_train_command_on_a_task_and_data_of_ones_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for split, start in (("train", 0), ("test", 40)):
        rows = demo.rows("routing", "train", count=60)[start : start + 20]
        lines = [json.dumps({"ticket": row["text"], "urgent": int(row["ambiguous"])}) for row in rows]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "urgent.yaml").write_text(
        "kind: choice\nprompt: 'Ticket: {ticket}\\nUrgent?'\nchoices: [' no', ' yes']\nanswer: urgent\n"
    )
    settings = {
        "task": "urgent.yaml",
        "old": {"base": str(demo.base("v1"))},
        "new": {"base": str(demo.base("v2"))},
        "output_dir": "out",
        "data": {"source": "."},
        "lora": {"r": 4, "alpha": 8},
        "training": {"max_steps": 2, "use_cpu": True},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    code = main(["train", "--config", "run.yaml", "--per_device_train_batch_size", "2", "--control", "false"])
    printed = capsys.readouterr().out
    assert code == 0
    assert "MUSCLE" in printed
    assert "control" not in printed
    assert (tmp_path / "out" / "muscle" / "adapter_model.safetensors").is_file()
    assert main(["train", "--config", "run.yaml", "--learning_rat", "1"]) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize("task", ["refund", "summary"])
def test_tasks_that_generate(task, tmp_path):
    settings = demo_settings(task, 0, tmp_path)
    settings.training |= {"max_steps": 1, "per_device_train_batch_size": 2}
    whole = demo_splits(task, 0)
    result = Run(settings, demo.TASKS[task], Splits(whole.train[:2], [], whole.test[:4]), lambda line: None).whole()
    assert len(columns(result.metric)) == 5
    assert [len(row) for row in cells(result)] == [5, 5, 5, 5]
    assert 0 <= result.row("muscle").nfr <= 1


def test_transfer_rows_of_a_run(tmp_path):
    settings = demo_settings("routing", 0, tmp_path / "run")
    settings.training |= {"max_steps": 2, "per_device_train_batch_size": 4, "transfer_mask": "more_confident_sequence"}
    settings.data.transfer = TransferSettings("train", answers="both")
    whole = demo_splits("routing", 0)
    splits = Splits(whole.train[:8], [], whole.test[:8], transfer=whole.train[8:20])
    Run(settings, demo.TASKS["routing"], splits, lambda text: None).whole()
    saved = json.loads((tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text())
    assert saved["data"]["transfer"]["rows"] == 12 and saved["data"]["train"]["rows"] == 8
    said: list[str] = []
    fewer = Splits(whole.train[:8], [], whole.test[:8], transfer=whole.train[8:19])
    Run(settings, demo.TASKS["routing"], fewer, said.append).whole()
    assert "Compatibility adapter" in said and any("Task adapter on v1: done" in line for line in said)


def test_the_target_is_chosen_on_validation_rows(tmp_path):
    settings = demo_settings("routing", 0, tmp_path / "run")
    settings.training |= {"max_steps": 2, "per_device_train_batch_size": 4}
    settings.data.transfer = TransferSettings("train", answers="old", target="chosen")
    whole = demo_splits("routing", 0)
    splits = Splits(whole.train[:8], whole.train[20:60], whole.test[:8], transfer=whole.train[8:14])
    said: list[str] = []
    made = Run(settings, demo.TASKS["routing"], splits, said.append)
    made.adapter("muscle")
    found = json.loads((tmp_path / "run" / "targets.json").read_text())
    assert found["items"] == 40 and found["chosen"] in found["targets"]
    saved = json.loads((tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text())["objective"]
    assert saved["mask"] == saved["transfer_mask"] == found["chosen"]["mask"]
    # From the answers to these rows, which nobody was trained on or is tested with.
    files = [tmp_path / "run" / "validation_predictions" / f"{side}.jsonl" for side in ("old", "new")]
    assert measure_targets(*map(str, files))[0].to_dict() == found
    assert {row.id for row in read_predictions(files[0])} == {item.id for item in splits.validation}
    assert any(f"Target: {saved['mask']} (" in line for line in said)
    again: list[str] = []
    Run(settings, demo.TASKS["routing"], splits, again.append).adapter("muscle")
    assert "Compatibility adapter" not in again and not any("validation items" in line for line in again)


def test_a_target_that_cannot_be_chosen_is_refused_first(tmp_path):
    settings = demo_settings("refund", 0, tmp_path / "run")
    settings.data.transfer = TransferSettings("train", target="chosen")
    whole = demo_splits("refund", 0)
    rows = whole.train[:2], whole.train[2:4], whole.test[:2], whole.train[4:6]
    with pytest.raises(MuscleError, match="is for tasks with choices"):
        Run(settings, demo.TASKS["refund"], Splits(*rows))
    with pytest.raises(MuscleError, match="needs validation rows"):
        Run(settings, demo.TASKS["routing"], Splits(rows[0], [], *rows[2:]))
    with pytest.raises(MuscleError, match=r"decides what training\.transfer_mask says"):
        dataclasses.replace(settings, training={"transfer_mask": "mean"})
    with pytest.raises(MuscleError, match=r"data\.transfer\.target"):
        TransferSettings("train", target="best")
    assert not (tmp_path / "run").exists()


def test_a_checker_of_one_s_own(tmp_path):
    """It is asked; a changed one trains anew; a wrong name is said before anything is done."""
    file = tmp_path / "mine.py"
    file.write_text("asked = []\n\ndef right(item, answer):\n    asked.append(answer)\n    return True\n")
    settings = demo_settings("refund", 0, tmp_path / "run")
    settings.training |= {"max_steps": 1, "per_device_train_batch_size": 2, "transfer_mask": "mean"}
    settings.max_new_tokens = 2
    settings.data.transfer = TransferSettings("train", answers="old", checker=f"{file}:right")
    whole = demo_splits("refund", 0)
    splits = Splits(whole.train[:2], [], whole.test[:2], transfer=whole.train[2:5])
    made = Run(settings, demo.TASKS["refund"], splits, lambda text: None)
    made.adapter("muscle")
    assert len(made.transfer.checker.__globals__["asked"]) >= 3
    saved = json.loads((tmp_path / "run" / "muscle" / "muscle_provenance.json").read_text())
    assert saved["data"]["transfer"]["checker"] == "right"
    said: list[str] = []
    Run(settings, demo.TASKS["refund"], splits, said.append).adapter("muscle")
    assert "Compatibility adapter" not in said
    file.write_text(file.read_text().replace("True", "False"))
    Run(settings, demo.TASKS["refund"], splits, said.append).adapter("muscle")
    assert "Compatibility adapter" in said
    for name, what in ((f"{file}:wrong", "has no 'wrong'"), (f"{file}:asked", "is no function"), ("x:y", "no Python")):
        settings.data.transfer = TransferSettings("train", checker=name)
        with pytest.raises(MuscleError, match=what):
            Run(settings, demo.TASKS["refund"], splits)
