"""MuscleConfig: TrainingArguments and the method's settings, on the command line, in files and in print."""

from __future__ import annotations

import dataclasses
import json

import builders
import pytest
from transformers import HfArgumentParser, TrainingArguments

from muscle_hf import MuscleConfig, MuscleError

TOKEN = "hf_ThisIsNotARealTokenButItMustNotBeSeen"
OWN = {field.name: field for field in dataclasses.fields(MuscleConfig)} | {}
for inherited in dataclasses.fields(TrainingArguments):
    OWN.pop(inherited.name)


def test_defaults_are_the_papers(tmp_path):
    config = MuscleConfig(str(tmp_path))
    assert config.temperature == 2.0
    assert config.mask == "student_wrong"
    assert config.compatibility_weight == 1.0
    assert config.scale_by_temperature_squared is False
    assert config.trained_tokens == "labels"


def test_a_preset_sets_what_nothing_else_does(tmp_path):
    made = MuscleConfig(str(tmp_path), preset="consensus")
    assert (made.mask, made.transfer_mask, made.compatibility_weight) == ("mean", "mean", 1.0)
    mine = MuscleConfig(str(tmp_path), preset="consensus", mask="mean(0.65)", compatibility_weight=0.5)
    assert (mine.mask, mine.transfer_mask, mine.compatibility_weight) == ("mean(0.65)", "mean", 0.5)
    again = MuscleConfig(**{**mine.to_dict(), "output_dir": str(tmp_path)})
    assert (again.mask, again.transfer_mask) == ("mean(0.65)", "mean")
    assert MuscleConfig(str(tmp_path), preset="paper").mask == MuscleConfig(str(tmp_path)).mask == "student_wrong"
    calibrated = MuscleConfig(str(tmp_path), preset="calibrated_consensus")
    assert (calibrated.mask, calibrated.transfer_mask, calibrated.calibrate_teachers) == ("mean", "mean", True)
    with pytest.raises(MuscleError, match="choose one of paper, consensus, calibrated_consensus"):
        MuscleConfig(str(tmp_path), preset="best")


def test_a_value_beside_a_preset_counts_also_where_it_is_the_default(tmp_path):
    given = {"mask": "student_wrong", "calibrate_teachers": False}
    line = f"--output_dir {tmp_path} --preset calibrated_consensus --mask student_wrong --calibrate_teachers False"
    parser = HfArgumentParser(MuscleConfig)
    made = MuscleConfig(str(tmp_path), preset="calibrated_consensus", **given)
    (again,) = parser.parse_dict(json.loads(made.to_json_string()), allow_extra_keys=True)
    (spoken,) = parser.parse_args_into_dataclasses(line.split())
    for config in (made, again, spoken, dataclasses.replace(made, temperature=3.0)):
        assert {name: getattr(config, name) for name in given} == given
        assert config.transfer_mask == "mean"
    (preset,) = parser.parse_args_into_dataclasses(line.split("--mask")[0].split())
    assert (preset.mask, preset.calibrate_teachers) == ("mean", True)


def test_calibration_is_a_flag_on_the_command_line(tmp_path):
    (config,) = HfArgumentParser(MuscleConfig).parse_args_into_dataclasses(
        ["--calibrate_teachers", "--output_dir", str(tmp_path)]
    )
    assert config.calibrate_teachers is True


def test_help_says_what_holds_without_a_preset():
    text = " ".join(HfArgumentParser(MuscleConfig).format_help().split())
    for default in ("student_wrong without one", "by default mean", "off without one"):
        assert default in text


@pytest.mark.parametrize("name", OWN)
def test_every_field_has_a_help_text_and_a_word_in_the_docstring(name):
    assert len(OWN[name].metadata["help"]) > 20
    assert f"{name}:" in MuscleConfig.__doc__


def test_command_line(tmp_path):
    parser = HfArgumentParser(MuscleConfig)
    line = f"--output_dir {tmp_path} --temperature 3 --mask old_right --compatibility_weight 0.5 --learning_rate 1e-4"
    line += " --scale_by_temperature_squared --trained_tokens completion --check_base False"
    (config,) = parser.parse_args_into_dataclasses(line.split())
    assert (config.temperature, config.mask, config.compatibility_weight) == (3.0, "old_right", 0.5)
    assert config.scale_by_temperature_squared
    assert config.trained_tokens == "completion"
    assert not config.check_base
    assert config.learning_rate == 1e-4
    assert "--temperature" in parser.format_help()


def test_rebuilt_from_its_dictionary_and_from_json(tmp_path):
    config = builders.config(tmp_path, temperature=1.5, mask="always_old")
    (again,) = HfArgumentParser(MuscleConfig).parse_dict(json.loads(config.to_json_string()), allow_extra_keys=True)
    assert (again.temperature, again.mask) == (1.5, "always_old")
    assert dataclasses.replace(config, temperature=4.0).temperature == 4.0


def test_the_token_is_nowhere_in_print(tmp_path):
    config = builders.config(tmp_path, hub_token=TOKEN, temperature=1.5)
    for text in (repr(config), str(config), config.to_json_string(), str(config.to_sanitized_dict())):
        assert TOKEN not in text
        assert "temperature" in text


def test_own_mask_by_import_path(tmp_path):
    assert builders.config(tmp_path, mask=f"{__name__}:always_new").mask.endswith(":always_new")


def always_new(student, old, new, labels):
    return labels < 0
