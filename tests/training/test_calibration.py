"""Teachers' temperatures, fitted on held-out rows, and what they change."""

from __future__ import annotations

import math

import builders
import pytest
import reference
import torch
from builders import with_lora
from scipy.optimize import minimize_scalar

from muscle_hf import MuscleError
from muscle_hf.training.calibration import fitted_temperature, negative_log_likelihoods

SETTINGS = {"calibrate_teachers": True, "num_train_epochs": 1}


@pytest.mark.parametrize("true", [0.5, 1.0, 2.3, 7.0])
def test_the_temperature_that_made_the_labels_is_found(true):
    torch.manual_seed(0)
    logits = 4 * torch.randn(20_000, 12)
    labels = torch.multinomial(torch.softmax(logits / true, dim=-1), 1).squeeze(-1)

    def cost(log_temperature):
        return torch.nn.functional.cross_entropy(logits.double() / math.exp(log_temperature), labels).item()

    exact = math.exp(minimize_scalar(cost, bracket=(-1, 1)).x)
    found = fitted_temperature(negative_log_likelihoods(logits, labels).sum(dim=0))
    assert found == pytest.approx(exact, rel=5e-3)
    assert found == pytest.approx(true, rel=0.05)


def models():
    """v2 and v1, which are as sure as trained models."""
    pair = with_lora(builders.llama(2), 20), with_lora(builders.llama(1), 10)
    for model in pair:
        model.get_base_model().get_output_embeddings().weight.data.mul_(2)
    return pair


def held_out(*pair):
    """Rows whose tokens are, in turns, what each of two models says."""
    table = builders.rows(30, seed=5)
    batch = builders.collate(table)
    says = [builders.logits_without_trainer(model, batch).argmax(-1).tolist() for model in pair]
    for row, *answers in zip(table, *says, strict=True):
        row["labels"][2:] = [answers[i % 2][i - 1] for i in range(2, len(row["labels"]))]
    return table


def best_temperature(model, batch, shift):
    logits = builders.logits_without_trainer(model, batch).double()
    z, y, _ = reference.trained(logits.numpy(), batch["labels"].numpy(), shift=shift)
    z, y = torch.from_numpy(z), torch.from_numpy(y)

    def cost(log_temperature):
        return torch.nn.functional.cross_entropy(z / math.exp(log_temperature), y).item()

    return math.exp(minimize_scalar(cost, bounds=(math.log(0.25), math.log(16)), method="bounded").x)


@pytest.mark.parametrize("chunk", [0, 3, None])
def test_the_loss_is_that_of_calibrated_teachers(chunk, tmp_path):
    new, old = models()
    rows = builders.half_right(builders.rows(), new)
    others = held_out(new, old)
    batch, held = builders.collate(rows), builders.collate(others)
    best = {"old": best_temperature(old, held, True), "new": best_temperature(new, held, True)}
    of_teachers = [builders.logits_without_trainer(model, batch).double().numpy() for model in (old, new)]
    trainer = builders.trainer(
        tmp_path, new, old, train_dataset=rows, eval_dataset=others, loss_chunk_size=chunk,
        per_device_eval_batch_size=3, mask="mean", **SETTINGS,
    )  # fmt: skip
    plain = trainer.compute_loss(trainer.model, batch).item()
    trainer.train()
    assert trainer.teacher_temperatures == pytest.approx(best, rel=5e-3)
    assert all(1.1 < value < 15 for value in best.values()), "the example must have something to find"
    logged = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    for role, value in trainer.teacher_temperatures.items():
        assert logged[f"{role}_teacher_temperature"] == value
    student = builders.logits_without_trainer(trainer.model, batch).double().numpy()
    labels = batch["labels"].numpy()
    (z_c, y, _), (z_1, _, _), (z_2, _, _) = (reference.trained(z, labels, shift=True) for z in (student, *of_teachers))
    found = trainer.teacher_temperatures
    half = 0.5 * torch.ones(len(y)).numpy()
    expected = reference.loss(z_c, z_1 / found["old"], z_2 / found["new"], y, half) / len(y)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=1e-4)
    assert plain != pytest.approx(expected, rel=0.05)


def test_classifiers_are_calibrated_too(tmp_path):
    heads = {"modules_to_save": ["classifier"]}
    new, old = with_lora(builders.bert_sequences(2), 20, **heads), with_lora(builders.bert_sequences(1), 10, **heads)
    rows = builders.half_right(builders.sequence_rows(), new)
    best = best_temperature(old, builders.collate(rows), False)
    trainer = builders.trainer(tmp_path, new, old, train_dataset=rows, eval_dataset=rows, **SETTINGS)
    trainer.train()
    assert trainer.teacher_temperatures["old"] == pytest.approx(best, rel=5e-3)


def test_several_sets_of_rows_count_together(tmp_path):
    rows, found = held_out(*models()), []
    for name, dataset in {"one": rows, "two": {"a": rows[:3], "b": rows[3:]}}.items():
        trainer = builders.trainer(tmp_path / name, *models(), eval_dataset=dataset, **SETTINGS)
        trainer.train()
        found.append(trainer.teacher_temperatures)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_teacher_cache_serves_whatever_the_temperature(tmp_path):
    rows, losses = held_out(*models()), []
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        settings = {**SETTINGS, "teacher_cache": cache and str(cache)}
        trainer = builders.trainer(tmp_path / "run", *models(), eval_dataset=rows, **settings)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "pass them as eval_dataset"),
        (
            {"eval_dataset": builders.rows(), "teacher_cache": "cache", "teacher_cache_top_k": 4},
            "leave one of the two",
        ),
    ],
)
def test_what_cannot_be_calibrated_is_refused_early(settings, says, tmp_path):
    with pytest.raises(MuscleError, match=says):
        builders.trainer(tmp_path, *models(), **SETTINGS, **settings)


def test_rows_without_trained_tokens_are_refused_before_training(tmp_path):
    empty = [{**row, "labels": [-100] * len(row["labels"])} for row in builders.rows()]
    trainer = builders.trainer(tmp_path, *models(), eval_dataset=empty, **SETTINGS)
    with pytest.raises(MuscleError, match="no trained token"):
        trainer.train()


def test_rows_that_were_trained_on_are_warned_of(tmp_path, caplog):
    new, old = models()
    held = builders.rows(seed=5)
    with torch.no_grad():
        for row in held:
            row["labels"][1:] = new(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].argmax(dim=-1).tolist()
    trainer = builders.trainer(tmp_path, new, old, eval_dataset=held, **SETTINGS)
    trainer.train()
    assert trainer.teacher_temperatures["new"] == pytest.approx(0.25)
    assert "are these rows held out" in caplog.text


def test_a_teacher_that_says_nan_is_named(tmp_path):
    new, old = models()
    old.get_base_model().model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    trainer = builders.trainer(tmp_path, new, old, eval_dataset=builders.rows(seed=5), **SETTINGS)
    with pytest.raises(MuscleError, match="the old model's logits are nan or infinite at the calibration"):
        trainer.train()
