"""Every recipe: read into its configs, its rows prepared, and run whole on tiny models; nothing in it goes unread."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import yaml
from transformers import TrainingArguments

from muscle_hf import MuscleConfig
from muscle_hf.bundled import bundled
from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline import config, smoke
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.recipes import (
    compare_with_published,
    find_recipe,
    recipes,
    reproduction_table,
    title_of,
)
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush, training_arguments
from muscle_hf.pipeline.table import Result, Row, load_result_predictions
from muscle_hf.training.config import PRESETS

pytest.importorskip("trl")

ROOT = bundled("recipes")
NAMES = sorted(recipes())
PAIRS = ("llama_1_to_2_7b", "vicuna_1.3_to_1.5_7b", "phi_1_to_1.5", "phi_1.5_to_2")
TASKS = ("hellaswag", "piqa", "gsm8k", "samsum")


@pytest.fixture(autouse=True, scope="module")
def quiet():
    hush()


def settings_of(name, *words):
    return load_settings(find_recipe(name), ["--output_dir", "out", *words])


# ---- What there is ----


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_is_what_is_trained(name):
    training = settings_of(name).training
    preset = PRESETS[training.get("preset", "paper")]
    assert not training.keys() & preset.keys() or "preset" not in training, "what is given beside a preset wins"


def test_all_sixteen_rows_with_the_papers_settings():
    for pair in PAIRS:
        for task in TASKS:
            settings = settings_of(f"paper/{pair}/{task}")
            training = settings.training
            assert settings.task == task
            assert (settings.lora.r, settings.lora.alpha, settings.lora.dropout) == (128, 256, 0.0)
            assert settings.lora.target_modules == "all-linear"
            assert (training["num_train_epochs"], training["learning_rate"]) == (10, 1e-4)
            assert (training["warmup_steps"], training["weight_decay"]) == (500, 0.0)
            assert (training["gradient_accumulation_steps"], training["temperature"]) == (8, 2.0)
            assert settings.data.validation_share == 0.2
            assert training["load_best_model_at_end"] and training["metric_for_best_model"] == "loss"
            assert training["eval_strategy"] == "epoch" and training["completion_only_loss"] is False
            phi = pair.startswith("phi")
            with_ce = phi and (task in ("gsm8k", "hellaswag") or pair == "phi_1_to_1.5")
            assert (training["compatibility_weight"] < 1) is with_ce, (pair, task)
            published = settings.published
            change = 100 * published["nfr_change"] / published["nfr"]
            # Within what rounding to two digits leaves.
            assert abs(change - published["nfr_change_percent"]) < 1.0 / published["nfr"] + 0.01


def test_the_masks_of_the_ablation():
    names = {"old_right", "always_old", "student_wrong_ce", "old_likelier_ce", "old_likelier_sequence_ce"}
    assert {name.split("/")[-1] for name in NAMES if name.startswith("paper/masks/")} == names
    for name in names:
        settings = settings_of(f"paper/masks/{name}")
        assert settings.training["mask"] == name.removesuffix("_ce")
        assert (settings.training["compatibility_weight"] < 1) is name.endswith("_ce")
        assert settings.published["source"] == "Table 7"


def test_the_pairs_that_are_only_measured():
    measured = [name for name in NAMES if name.startswith("paper/measure/")]
    assert len(measured) == 9
    assert not any(settings_of(name).compatibility for name in measured)


@pytest.mark.parametrize("name", NAMES)
def test_header_title_and_launch_line(name):
    text = find_recipe(name).read_text()
    assert title_of(find_recipe(name))
    lines = [line for line in text.splitlines() if line.startswith("#   ")]
    assert any(name in line for line in lines), "its own launch line"
    for line in lines:
        assert re.match(r"#   (muscle-hf (train|reproduce)|accelerate launch|--)", line)


def test_names_titles_and_files_can_be_listed(capsys):
    assert main(["recipes", "paper/phi_1_to"]) == 0
    assert capsys.readouterr().out.count("\n") == 4
    assert main(["recipes", "paper/phi_1_to_1.5/piqa"]) == 0
    assert "microsoft/phi-1_5" in capsys.readouterr().out
    assert main(["recipes", "nothing"]) == 2
    with pytest.raises(MuscleError, match=r"paper/phi_1_to_1\.5/piqa"):
        find_recipe("paper/phi_1_to_15/piqa")


def test_included_files_lie_below(tmp_path):
    (tmp_path / "a.yaml").write_text("include: b.yaml\nlora: {r: 1}\n")
    (tmp_path / "b.yaml").write_text(
        "lora: {r: 2, alpha: 3}\nold: {base: x}\nnew: {base: y}\noutput_dir: o\ntask: t\n"
    )
    assert load_settings(tmp_path / "a.yaml").lora == config.LoraSettings(r=1, alpha=3)


# ---- Each one works ----


def unlike():
    """One recipe of those that differ in nothing but their bases, which tiny ones stand in for."""
    found = {}
    for name in NAMES:
        content = settings_of(name).to_dict()
        for side in ("old", "new"):
            content[side] |= dict.fromkeys(("base", "revision"))
        found.setdefault(repr({**content, "published": None}), name)
    return list(found.values())


@pytest.mark.parametrize("name", unlike())
def test_configs_are_built_and_rows_prepared(name, tmp_path):
    small = smoke.smoke_settings(settings_of(name, "--output_dir", str(tmp_path)))
    run = Run.of(small, lambda line: None)
    for cls in (small.plain_class, small.config_class):
        arguments = training_arguments(cls, run.training, tmp_path)
        rows = run.data.for_trainer(arguments)["train_dataset"]
        assert len(rows) >= 5
        assert {"input_ids", "labels"} <= set(rows[0]) or "messages" in rows[0]


class Reads:
    """Which fields of the settings, and of the training arguments made of them, were read, by class and name."""

    # They copy, check or write down every field, whatever it is for.
    SERIAL = re.compile(r"dataclasses\.py|<string>|muscle_hf/(provenance|hub/.*|pipeline/config)\.py")
    CHECKS = ("__post_init__", "_validate_args", "to_dict", "__str__", "__repr__")

    def __init__(self, monkeypatch):
        self.seen: set[tuple[str, str]] = set()
        groups = [cls for cls in vars(config).values() if dataclasses.is_dataclass(cls)]
        for cls in (*groups, TrainingArguments):
            self._watch(monkeypatch, cls)

    def _watch(self, monkeypatch, cls):
        original = cls.__getattribute__
        own = cls is not TrainingArguments

        def getattribute(instance, name):
            frame = sys._getframe(1)
            while frame.f_code.co_name.startswith("<"):  # a comprehension
                frame = frame.f_back
            caller = frame.f_code
            reads = caller.co_name not in self.CHECKS and not self.SERIAL.search(caller.co_filename)
            # Other libraries copy and print the settings; the training arguments are for them.
            if reads and ("muscle_hf" in caller.co_filename or not own):
                self.seen.add((cls.__name__, name))
            return original(instance, name)

        monkeypatch.setattr(cls, "__getattribute__", getattribute)


# Consumed where the arguments are made; in them then stands what came of it.
CONSUMED = {"bf16": "mixed_precision", "preset": "mask"}


def leaves(content, cls=config.RunSettings):
    """The settings of a recipe file by the class and field that they go to."""
    for key, value in content.items():
        if key in ("training", "task_training"):
            yield from (("TrainingArguments", CONSUMED.get(name, name)) for name in value)
        elif key not in ("include", "published"):
            hint = get_type_hints(cls)[key]
            nested = [kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)]
            if nested and value is not None:
                yield from leaves(value, nested[0])
            yield cls.__name__, key


def test_what_is_consumed_stands_in_the_arguments():
    values = {"bf16": (False, True), "preset": ("paper", "consensus")}
    for name, result in CONSUMED.items():
        made = [MuscleConfig("x", use_cpu=True, **{name: value}) for value in values[name]]
        assert getattr(made[0], result) != getattr(made[1], result)


@pytest.mark.slow
def test_a_field_that_nothing_reads_is_noticed(tmp_path, monkeypatch):
    """The net itself: a field of the arguments that no library reads, set in a recipe's file."""

    @dataclasses.dataclass
    class WithDecoration(MuscleConfig):
        decoration: int = 0

    monkeypatch.setattr(config.RunSettings, "config_class", WithDecoration)
    reads = Reads(monkeypatch)
    words = ["--smoke", "--output_dir", str(tmp_path), "--control", "false", "--decoration", "1"]
    assert main(["train", "--config", "stories260k/sst2", *words]) == 0
    places = leaves({"training": {"decoration": 1, "learning_rate": 1.0}, "lora": {"r": 1}})
    assert [place for place in places if place not in reads.seen] == [("TrainingArguments", "decoration")]


_done: dict[str, tuple[Path, set[tuple[str, str]]]] = {}


def whole(name, folder, reads):
    """The folder of a recipe's smoke run and what it read; recipes that differ in their bases alone share one."""
    words = ["--output_dir", str(folder)]
    small = smoke.smoke_settings(settings_of(name, *words))
    key = repr(dataclasses.replace(small, published=None))
    key = key.replace(str(folder), "")
    if key not in _done:
        assert main(["train", "--config", name, "--smoke", *words]) == 0
        _done[key] = folder / "smoke", reads.seen
    return _done[key]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_run_on_tiny_models_reads_every_setting(name, tmp_path_factory, monkeypatch):
    folder, seen = whole(name, tmp_path_factory.mktemp("smoke"), Reads(monkeypatch))
    small = smoke.smoke_settings(settings_of(name, "--output_dir", str(folder.parent)))
    if small.compatibility:
        adapter = json.loads((folder / "muscle" / "adapter_config.json").read_text())
        assert adapter["r"] == small.lora.r
        provenance = json.loads((folder / "muscle" / "muscle_provenance.json").read_text())
        preset = PRESETS[small.training.get("preset", "paper")]
        mask = small.training.get("mask", preset.get("mask", "student_wrong"))
        if small.data.transfer is not None and small.data.transfer.target:
            mask = json.loads((folder / "targets.json").read_text())["chosen"]["mask"]
        assert provenance["objective"]["mask"] == mask
        assert ("transfer" in provenance["data"]) is (small.data.transfer is not None)
    assert (folder / "result.json").is_file() is (small.task is not None)
    unread = [place for file in files_of(find_recipe(name)) for place in leaves(file) if place not in seen]
    assert unread == []
    published = settings_of(name).published
    if published is not None:
        predictions = load_result_predictions(folder)
        lines = compare_with_published(published, Result.of(predictions), predictions)
        table = reproduction_table(lines, small, Result.of(predictions))
        given = {key: value for key, value in published.items() if value is not None}
        assert given.pop("source") in table
        assert {name: line["published"] for name, line in lines.items() if line["published"] is not None} == given


def files_of(file):
    """A recipe's own content and that of the files it includes."""
    content = yaml.safe_load(file.read_text())
    names = content.get("include", [])
    for name in [names] if isinstance(names, str) else names:
        yield from files_of(file.parent / name)
    yield content


@pytest.mark.slow
def test_reproduce_sets_measured_beside_published(tmp_path, capsys):
    name = "paper/phi_1_to_1.5/samsum"
    words = ["--output_dir", str(tmp_path), "--control", "false"]
    assert main(["reproduce", name, "--smoke", *words]) == 0
    printed = capsys.readouterr().out
    assert "| v2 | 37.53 |" in printed
    figures = json.loads((tmp_path / "smoke" / "reproduction.json").read_text())
    result = json.loads((tmp_path / "smoke" / "result.json").read_text())["result"]
    rows = {row["model"]: row for row in result["rows"]}
    assert figures["nfr"] == {"published": 32.6, "measured": pytest.approx(100 * rows["new"]["nfr"])}
    assert figures["muscle"]["measured"] == pytest.approx(100 * rows["muscle"]["quality"])
    assert figures["gain_change"]["published"] == -0.38
    assert load_result_predictions(tmp_path / "smoke").keys() == {"old", "new", "muscle"}


def test_figures_that_a_table_does_not_give_stay_empty():
    result = Result("piqa", "acc", 4, [Row("old", 0.5), Row("new", 0.75, nfr=0.25, pfr=0.5)])
    published = {"source": "Table 9", "nfr": 20.0}
    lines = {name: tuple(line.values()) for name, line in compare_with_published(published, result, {}).items()}
    assert lines == {"v1": (None, 50.0), "v2": (None, 75.0), "nfr": (20.0, 25.0)}


# ---- The scripts ----


@pytest.mark.slow
def test_the_steps_one_by_one_as_scripts(tmp_path, monkeypatch, capsys):
    def script(name, *words):
        command = [*words, "--config", "paper/phi_1_to_1.5/piqa", "--smoke", "--output_dir", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", [name, *command, "--control", "false"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / f"{name}.py"), run_name="__main__")
        assert ended.value.code == 0
        return capsys.readouterr().out

    folder = tmp_path / "smoke"
    assert script("task_adapter", "old").strip().endswith(str(folder / "old"))
    assert not (folder / "new").exists()
    assert str(folder / "muscle") in script("compatibility_adapter", "muscle")
    assert (folder / "new" / "adapter_model.safetensors").is_file()
    assert "| MUSCLE |" in script("evaluation")
