"""Logs and settings that whole answers cannot be followed with."""

from __future__ import annotations

from dataclasses import replace

import builders
import pytest
from recorded_world import (
    items,
    known_log,
    made,
    old_model,
    predictions,
    rows,
)

from muscle_hf import ChoiceLog, MuscleError


def text_log():
    return ChoiceLog([{"prompt": items()[0].prompt, "prediction": "w3"}])


@pytest.mark.parametrize(
    ("old", "settings", "message"),
    [
        (old_model, {"old_targets": "choices"}, "ChoiceLog"),
        (old_model, {"old_targets": "answer", "mask": "old_right"}, "old_right"),
        (old_model, {"old_targets": "answer", "transfer_mask": "more_confident"}, "more_confident"),
        (old_model, {"old_targets": "answer", "divergence": "logit_difference"}, "divergence"),
        (old_model, {"old_targets": "answer", "blend": "logits"}, "blend"),
        (old_model, {"old_targets": "answers"}, "old_targets"),
        (old_model, {"old_reference": "old"}, "old_reference"),
        (known_log, {"old_targets": "tokens"}, "tokens"),
        (known_log, {"old_targets": "answer", "mask": "old_right"}, "old_right"),
        (known_log, {"calibrate_teachers": True, "eval_dataset": rows(items())}, "calibrate"),
        (known_log, {"processing_class": None}, "processing_class"),
        (known_log, {"start_from": "old"}, "alone"),
        (text_log, {"old_targets": "answer"}, "likelihood"),
    ],
)
def test_what_cannot_be_trained_so_is_refused_early(old, settings, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        made(tmp_path, old(), **settings)


def test_a_file_of_answers_that_is_not_there(tmp_path):
    with pytest.raises(MuscleError, match="no file of answers"):
        made(tmp_path, str(tmp_path / "answers.jsonl"))


def test_masks_may_read_what_is_known_of_choices(tmp_path):
    trainer = made(tmp_path, known_log(), mask="old_right")
    assert trainer.old_targets == "choices"
    trainer.train()


@pytest.mark.parametrize("given", ["another log", "one unknown in ten", "other answers"])
def test_a_log_of_other_items_is_refused_with_examples(given, tmp_path):
    asked = items(20)
    logs = {
        "another log": lambda: ChoiceLog(predictions(items(20, seed=9))),
        "one unknown in ten": lambda: ChoiceLog(predictions(asked[:18])),
        "other answers": lambda: ChoiceLog([{"prompt": item.prompt, "prediction": "w40"} for item in asked]),
    }
    example = {"one unknown in ten": asked[18].prompt, "another log": asked[0].prompt}.get(given, "encode_answers")
    with pytest.raises(MuscleError, match=example):
        made(tmp_path, logs[given](), rows(asked))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ([{"prompt": "w3", "answer": "w4"}], "prediction"),
        ([{"id": 1, "prediction": "w4"}], "items="),
        ([{"id": 1, "prompt": "w3", "choices": ["a", "b"], "log_likelihoods": [0.0]}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "log_likelihoods": [float("nan")]}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "log_likelihoods": [None]}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": ["a", "b"], "log_likelihoods": [0.7, 0.3]}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "prediction": 2}], "2"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "prediction": 2, "log_likelihoods": [-1.0]}], "2"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "log_likelihoods": -1.0}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "log_likelihoods": ["-1.0"]}], "item '1'"),
        ([{"id": 1, "prompt": "w3", "choices": "ab", "prediction": 0}], "'ab'"),
        ([{"id": 1, "prompt": "w3", "choices": [3, 4], "prediction": 0}], "3, 4"),
        ([{"id": 1, "prompt": "w3", "choices": ["a", "b"], "prediction": 0.5}], "0.5"),
        ([{"id": 1, "prompt": "w3", "prediction": ["w4"]}], "w4"),
        ([{"id": 1, "prompt": "w3", "choices": ["a"], "log_likelihoods": [x]} for x in (-1.0, -2.0)], "-2.0"),
        (
            [{"prompt": "w3", "choices": ["a", y], "log_likelihoods": [x, -3]} for x, y in ((-1, "b"), (-2, "c"))],
            "-2.0",
        ),
        ([], "no answers"),
        ("nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_damaged_logs_are_refused(log, message):
    with pytest.raises(MuscleError, match=message):
        ChoiceLog(log)


def test_answers_that_are_numbers_are_texts():
    assert ChoiceLog([{"prompt": "w3", "prediction": 42}]).said("w3") == " 42"


def test_choices_that_go_on_where_others_end_need_an_end(tmp_path):
    asked = [replace(item, choices=(" w30", " w30 w31"), answers=(0,)) for item in items()]
    log = predictions(asked)
    made(tmp_path, ChoiceLog(log), rows(asked), old_targets="choices").train()
    with pytest.raises(MuscleError, match="end"):
        made(tmp_path, ChoiceLog(log), rows(asked, ended=False), old_targets="choices")


def test_packed_rows_are_refused(tmp_path):
    from transformers import DataCollatorWithFlattening

    table = [{k: row[k] for k in ("input_ids", "labels")} for row in rows(items())]
    for old, settings in ((known_log(), {}), (old_model(), {"old_targets": "answer"})):
        with pytest.raises(MuscleError, match="pack"):
            made(tmp_path, old, table, data_collator=DataCollatorWithFlattening(), **settings)


@pytest.mark.parametrize("kind", ["seq2seq", "classifier"])
def test_other_kinds_of_model_are_refused(kind, tmp_path):
    build = {"seq2seq": builders.t5, "classifier": builders.bert_sequences}[kind]
    table = builders.sequence_rows() if kind == "classifier" else builders.without(builders.rows(), "completion_mask")
    with pytest.raises(MuscleError, match="causal"):
        builders.trainer(
            tmp_path, builders.with_lora(build(2), 20), builders.with_lora(build(1), 10), train_dataset=table,
            old_targets="answer",
        )  # fmt: skip
