"""v1 in memory that is followed by one number a row; and runs that go on, or in several processes."""

from __future__ import annotations

import sys
from pathlib import Path

import builders
import pytest
import torch
from launching import end, launched
from recorded_world import (
    expected_loss,
    items,
    known_log,
    loss_of,
    made,
    old_model,
    predictions,
    rows,
    tokenizer,
)
from safetensors.torch import load_file

from muscle_hf import ChoiceLog
from muscle_hf.teachers.teacher import ModelTeacher


def likelihood_in_memory(row):
    """Of v1, of all that the completion mask marks."""
    logits = builders.logits_without_trainer(old_model(), builders.collate([row]))[0, :-1].double().log_softmax(-1)
    tokens, answer = torch.tensor(row["input_ids"][1:]), torch.tensor(row["completion_mask"][1:]) == 1
    return float(logits[torch.arange(len(tokens)), tokens][answer].sum()), int(answer.sum())


@pytest.mark.parametrize("settings", [{}, {"loss_chunk_size": 3}, {"loss_chunk_size": 0}, {"teacher_cache": "cache"}])
def test_one_number_of_a_model_is_what_the_equation_makes_of_it(settings, tmp_path):
    table = rows(items())
    settings = {name: str(tmp_path / "cache") if value == "cache" else value for name, value in settings.items()}
    trainer = made(tmp_path, table=table, old_targets="answer", **settings)
    found = loss_of(trainer, table)
    assert found == pytest.approx(expected_loss(trainer, table, likelihood_in_memory), rel=1e-4)


def test_its_body_sees_a_row_once_and_numbers_outlive_the_run(tmp_path, monkeypatch):
    seen = []
    own = ModelTeacher.logits
    monkeypatch.setattr(
        ModelTeacher, "logits", lambda self, inputs: (seen.append(len(inputs["input_ids"])), own(self, inputs))[1]
    )
    settings = {"old_targets": "answer", "num_train_epochs": 3, "max_steps": -1, "mask": "mean"}
    made(tmp_path, **settings).train()
    assert sum(seen) == 8
    made(tmp_path, **settings).train()
    assert sum(seen) == 8
    (kept,) = (tmp_path / "answer_likelihoods").rglob("rows-*.safetensors")
    assert kept.stat().st_size < 4096


def test_where_the_cache_has_all_numbers_v1_is_not_even_asked(tmp_path):
    base = builders.llama(1)
    base.save_pretrained(tmp_path / "base")
    old = builders.with_lora(base, 10)
    old.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    old.save_pretrained(tmp_path / "old")
    settings = {"old_targets": "answer", "teacher_cache": str(tmp_path / "cache"), "mask": "mean", "max_steps": 2}
    settings["old_processing_class"] = tokenizer()
    trained = []
    for name in ("first", "second"):
        trainer = made(tmp_path / name, str(tmp_path / "old"), **settings)
        trainer.train()
        trained.append(builders.weights_of(trainer.model))
    assert trainer.teachers["old"]._device is not None, "v1 was asked"
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items() if "default" in name)


def test_accumulated_batches_are_one_batch(tmp_path):
    found = []
    for size, steps in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer = made(tmp_path / str(size), old_targets="answer", mask="mean", **settings)
        trainer.train()
        found.append(builders.weights_of(trainer.model))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", ["memory", "log"])
def test_a_run_that_goes_on_is_the_run(kind, tmp_path):
    settings = {"old_targets": "answer", "max_steps": 6, "mask": "mean", "save_strategy": "steps", "save_steps": 3}
    old = {"memory": old_model, "log": lambda: ChoiceLog(predictions(items()))}[kind]
    whole = made(tmp_path / "a", old(), **settings)
    whole.train()
    other = made(tmp_path / "a", old(), **settings)
    other.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for name, weight in builders.weights_of(whole.model).items():
        assert torch.equal(weight, builders.weights_of(other.model)[name]), name


def run(folder, kind, batch):
    old = {"log": known_log, "memory": old_model}[kind]()
    trainer = made(
        folder, old, old_targets="answer", mask="mean", max_steps=4, per_device_train_batch_size=batch,
        train_sampling_strategy="sequential", learning_rate=0.5, optim="sgd",
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "saved"))
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["log", "memory"])
def test_two_processes_train_as_one(kind, tmp_path):
    run(tmp_path / "one", kind, 4)
    launched([__file__, str(tmp_path / "two"), kind], {"ACCELERATE_USE_CPU": "true"})
    one, two = (load_file(tmp_path / name / "saved" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-5) for key in one)


if __name__ == "__main__":
    end(run(Path(sys.argv[1]), sys.argv[2], 2))
