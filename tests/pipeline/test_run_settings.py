"""Settings of a run: YAML, overrides on the command line, and what is refused."""

from __future__ import annotations

from typing import Optional, Union

import pytest

from muscle_hf import demo
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.pipeline.config import DataSettings, SplitSettings, TransferSettings, load_settings
from muscle_hf.pipeline.reading import convert
from muscle_hf.pipeline.smoke import smoke_settings

MINIMAL = """
task: sst2
old: {base: v1}
new: {base: v2, revision: main}
output_dir: out
training: {learning_rate: 2.0e-4, num_train_epochs: 3}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(MINIMAL)
    return path


def test_yaml_with_defaults_of_the_paper(file):
    settings = load_settings(file)
    assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout) == (128, 256, 0.0)
    assert settings.data.validation_share == 0.2
    assert settings.new.revision == "main"
    assert settings.training == {"learning_rate": 2e-4, "num_train_epochs": 3}


def test_every_setting_can_be_overridden(file):
    words = "--learning_rate 1e-4 --lora.r 16 --data.train.split=train --data.train.limit 500 --mask old_right --bf16"
    more = ["--new.base", "other", "--lora.target_modules", "[q_proj, v_proj]", "--control", "false"]
    settings = load_settings(file, [*words.split(), *more])
    assert settings.training["learning_rate"] == 1e-4
    assert settings.training["mask"] == "old_right"
    assert settings.training["bf16"] is True
    assert settings.lora.r == 16
    assert settings.lora.target_modules == ["q_proj", "v_proj"]
    assert settings.data.train == SplitSettings("train", 0, 500)
    assert settings.new.base == "other"
    assert settings.control is False


def test_a_number_that_yaml_reads_as_a_text_is_one(tmp_path):
    (tmp_path / "run.yaml").write_text(MINIMAL.replace("2.0e-4", "1e-4"))
    assert load_settings(tmp_path / "run.yaml").training["learning_rate"] == 1e-4


@pytest.mark.parametrize("text", ["[new] router", "Router: keeps: all", "50 % fewer: {", "a 'quote"])
def test_a_title_need_not_be_yaml(file, text):
    assert load_settings(file, ["--card.title", text]).card["title"] == text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--learning_rat", "1"], "'learning_rate'"),
        (["--lora.rank", "1"], "unknown setting lora.rank"),
        (["--card.titel", "x"], r"card\.titel.*'title'"),
        (["--card.language", "en"], "card.language is 'en'; expected list"),
        (["--card.history", "[]"], "unknown setting card.history"),
        (["--lora.r", "many"], "lora.r is 'many'; expected int"),
        (["--data.train.limit", "true"], "expected int"),
        (["--output_dir.x", "1"], "not a group of settings"),
        (["stray"], "unexpected 'stray'"),
        (["--data.validation_share", "1.5"], "must be in"),
        (["--student_dropout", "1"], "student_dropout is 1.0; it must be in"),
        (["--lora.dropout", "-0.1"], "lora.dropout is -0.1; it must be in"),
        (["--old", "v1"], "old must be a mapping"),
        (["--old.server", "{url: 'http://me:secret@localhost/v1', model: x}"], "password"),
        (["--learning_rate", "fast"], "training.learning_rate is 'fast'"),
        (["--lora.r", "0"], "lora.r is 0"),
        (["--eval_batch_size", "0"], "eval_batch_size is 0"),
        (["--weight_decay", "[1]"], r"training.weight_decay is \[1\]"),
        (["--per_device_train_batch_size", "0"], "training.per_device_train_batch_size is 0"),
        (["--num_train_epochs", "2024-13-45"], "2024-13-45"),
        (["--lora.r", "[" * 9999], "lora.r"),
    ],
)
def test_wrong_overrides_say_what_is_wrong(file, words, message):
    with pytest.raises(MuscleError, match=message):
        load_settings(file, words)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: sst2\n", "missing: old, new, output_dir"),
        ("[]", "must be a mapping"),
        ("task: {", "not valid YAML"),
        (MINIMAL + "tsak: x\n", "tsak.*'task'"),
        (MINIMAL + "include: 5\n", "include is 5"),
        (MINIMAL + "include: run.yaml\n", "run.yaml"),
        (MINIMAL + "include: [5]\n", "include is .5"),
    ],
)
def test_wrong_files_say_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(MuscleError, match=message):
        load_settings(path)
    with pytest.raises(MuscleError, match=r"nowhere\.yaml"):
        load_settings(tmp_path / "nowhere.yaml")


def test_splits_hold_out_a_share_and_never_mix_test_with_training(tmp_path):
    from muscle_hf.pipeline.data import load_splits

    rows = tmp_path / "rows.csv"
    rows.write_text("q,a\n" + "".join(f"{i}+1,{i + 1}\n" for i in range(100)))
    task = Task("sums", "generation", lambda row, i: Item(str(i), row["q"], references=(row["a"],)), "exact_match")
    data = DataSettings(str(rows), train=SplitSettings("test", 0, 50), test=SplitSettings("test", 50))
    splits = load_splits(task, data)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (40, 10, 50)
    ids = [{item.id for item in part} for part in (splits.train, splits.validation, splits.test)]
    assert not (ids[0] & ids[1] or ids[0] & ids[2] or ids[1] & ids[2])
    data.test = SplitSettings("test", 49)
    with pytest.raises(MuscleError, match="1 test rows are training rows"):
        load_splits(task, data)


@pytest.mark.parametrize(
    ("name", "settings", "shared"),
    [
        # A file is its only split, whatever the splits are called.
        ("rows.csv", {}, "20 test rows are training rows"),
        ("rows.csv", {"train": SplitSettings("train", 0, 15), "test": SplitSettings("test", 10)}, "5 test rows"),
        ("rows.csv", {"train": SplitSettings("train", 0, 10), "test": SplitSettings("test", 10)}, None),
        # The task's test split is the validation file, where there is no other.
        (".", {"train": SplitSettings("validation")}, "20 test rows are training rows"),
        (".", {"validation": SplitSettings("validation")}, "20 test rows are validation rows"),
        (".", {"validation": SplitSettings("validation", 0, 5), "test": SplitSettings("test", 5)}, None),
        (".", {"transfer": TransferSettings("validation")}, "20 test rows are transfer rows"),
        (".", {"test_source": "train.csv"}, "20 test rows are training rows"),
        (".", {}, None),
    ],
)
def test_no_test_row_is_trained_on_or_selected_by(name, settings, shared, tmp_path):
    from muscle_hf.evaluation import load_task
    from muscle_hf.pipeline.data import load_splits

    rows = "sentence,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(20))
    for file in ("rows.csv", "train.csv", "validation.csv"):
        (tmp_path / file).write_text(rows)
    settings = dict(settings)
    if "test_source" in settings:
        settings["test_source"] = str(tmp_path / settings["test_source"])
    data = DataSettings(str(tmp_path / name), **settings)
    if shared is None:
        assert load_splits(load_task("sst2"), data).test
    else:
        with pytest.raises(MuscleError, match=shared):
            load_splits(load_task("sst2"), data)


@pytest.mark.parametrize(("share", "held_out"), [(0.2, 20), (0.25, 25), (0.3, 30), (0.4, 40), (0.6, 60), (0.9, 90)])
def test_the_share_that_is_held_out_is_the_share_that_was_asked_for(share, held_out, tmp_path):
    from muscle_hf.evaluation import load_task
    from muscle_hf.pipeline.data import load_splits

    rows = "sentence,label\n" + "".join(f"row {i},{i % 2}\n" for i in range(100))
    for file in ("train.csv", "validation.csv"):
        (tmp_path / file).write_text(rows)
    splits = load_splits(load_task("sst2"), DataSettings(str(tmp_path), validation_share=share))
    ids = [[int(item.id) for item in part] for part in (splits.train, splits.validation)]
    assert len(ids[1]) == held_out and sorted(ids[0] + ids[1]) == list(range(100))
    assert max(b - a for a, b in zip(ids[1], ids[1][1:], strict=False)) <= round(1 / share + 0.5), "evenly spaced"


@pytest.mark.parametrize("hint", [Optional[str], Union[str, None], str | None])  # noqa: UP007, UP045
def test_optional_settings_are_read_by_any_python(hint):
    """Unions of types tell themselves from lists of types in other ways before and after Python 3.14."""
    assert (convert(None, hint, "task"), convert("trec", hint, "task")) == (None, "trec")
    assert convert(["a"], list[str] | None, "files") == ["a"]
    with pytest.raises(MuscleError, match="task is 3"):
        convert(3, hint, "task")


def test_smoke_shortens_task_adapters_that_alone_have_steps(tmp_path):
    content = f"""
        old: {{base: {demo.base("v1")}}}
        new: {{base: {demo.base("v2")}}}
        task: trec
        output_dir: {tmp_path / "out"}
        training: {{num_train_epochs: 3}}
        task_training: {{max_steps: 5000, num_train_epochs: 3}}
    """
    (tmp_path / "run.yaml").write_text(content)
    small = smoke_settings(load_settings(tmp_path / "run.yaml", []))
    assert "max_steps" not in small.training and small.training["num_train_epochs"] == 1
    assert small.task_training == {"max_steps": 2, "num_train_epochs": 1}
