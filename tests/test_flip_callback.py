"""FlipMetricsCallback: right figures, in time for the best model, and no influence on training."""

from __future__ import annotations

import re
from dataclasses import replace

import paths
import peft
import pytest
import torch
from evaluation_models import make_choice_task, make_generation_task, make_model, make_tokenizer
from launching import launched
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from muscle_hf.callbacks import FlipMetricsCallback, training_flips
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import encode_pair, evaluate_task, write_predictions
from muscle_hf.training.provenance import read_provenance

TASK, ITEMS = make_choice_task(10)


def lora_model(seed: int = 0) -> peft.PeftModel:
    torch.manual_seed(seed)
    return peft.get_peft_model(
        make_model(), peft.LoraConfig(target_modules="all-linear", r=2, lora_alpha=8, lora_dropout=0.1)
    )


def rows():
    found = []
    for item in ITEMS:
        context, rest = encode_pair(make_tokenizer(), item.prompt, item.target)
        found.append({"input_ids": context + rest, "labels": [-100] * len(context) + rest})
    return found


def collate(batch):
    width = max(len(row["input_ids"]) for row in batch)
    padded = {
        name: [row[name] + [fill] * (width - len(row[name])) for row in batch]
        for name, fill in (("input_ids", 2), ("labels", -100))
    }
    return {name: torch.tensor(values) for name, values in padded.items()}


def make_trainer(folder, model=None, callbacks=None, **arguments) -> Trainer:
    settings = {
        "per_device_train_batch_size": 4,
        "num_train_epochs": 3,
        "learning_rate": 5e-3,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        **arguments,
    }
    return Trainer(
        model or lora_model(),
        TrainingArguments(str(folder), **settings),
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=collate,
        processing_class=make_tokenizer(),
        callbacks=callbacks,
    )


def test_the_old_model_is_asked_in_words_of_its_own():
    asked, old = [replace(item, prompt=f"Q {item.prompt}") for item in ITEMS], lora_model(1)
    callback = FlipMetricsCallback(TASK, ITEMS, old=old, old_items=asked, tokenizer=make_tokenizer())
    assert callback.predictions("old") == evaluate_task(old, make_tokenizer(), TASK, asked, progress=False)
    for others in (asked[1:], [replace(asked[0], id="x"), *asked[1:]]):
        with pytest.raises(MuscleError, match="old_items"):
            FlipMetricsCallback(TASK, ITEMS, old=old, old_items=others)


@pytest.fixture(scope="module")
def sides():
    """Predictions of an old and a new model."""
    return [evaluate_task(make_model(seed=seed), make_tokenizer(), TASK, ITEMS, progress=False) for seed in (1, 2)]


def test_training_is_bit_identical_with_and_without(tmp_path, sides):
    old = make_model(seed=1)
    generation = make_generation_task(2, max_new_tokens=3)
    plain = make_trainer(tmp_path / "plain")
    plain.train()
    watched = make_trainer(tmp_path / "watched")
    watched.add_callback(FlipMetricsCallback(TASK, ITEMS, old, sides[1], trainer=watched))
    watched.add_callback(FlipMetricsCallback(*generation, old, prefix="text_", trainer=watched))
    watched.train()
    assert {k: v.tolist() for k, v in plain.model.state_dict().items() if "lora" in k} == {
        k: v.tolist() for k, v in watched.model.state_dict().items() if "lora" in k
    }
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (plain, watched)]
    assert losses[0] == losses[1] and len(losses[0]) > 6
    assert watched.model.training == plain.model.training
    assert sum("eval_nfr" in entry for entry in watched.state.log_history) == 3
    assert sum("eval_text_nfr" in entry for entry in watched.state.log_history) == 3


def test_the_figures_are_those_of_the_predictions(tmp_path, sides):
    old, new = sides
    trainer = make_trainer(tmp_path)
    callback = FlipMetricsCallback(TASK, ITEMS, old, new, trainer=trainer)
    trainer.add_callback(callback)
    metrics = trainer.evaluate()
    now = evaluate_task(trainer.model, make_tokenizer(), TASK, ITEMS, progress=False)
    count = len(ITEMS)
    assert metrics["eval_acc"] == pytest.approx(sum(p.correct for p in now) / count)
    assert metrics["eval_acc_old"] == pytest.approx(sum(p.correct for p in old) / count)
    assert metrics["eval_acc_new"] == pytest.approx(sum(p.correct for p in new) / count)
    nfr = sum(a.correct and not b.correct for a, b in zip(old, now, strict=True)) / count
    update = sum(a.correct and not b.correct for a, b in zip(old, new, strict=True)) / count
    assert metrics["eval_nfr"] == pytest.approx(nfr) and metrics["eval_nfr_new"] == pytest.approx(update)
    assert metrics["eval_delta_nfr"] == pytest.approx(nfr - update)
    assert metrics["eval_nfr_against_new"] == pytest.approx(
        sum(a.correct and not b.correct for a, b in zip(new, now, strict=True)) / count
    )
    assert metrics["eval_nfr_mc"] >= metrics["eval_nfr"]
    assert callback.history[-1]["nfr"] == metrics["eval_nfr"]
    assert "test_nfr" in trainer.evaluate(metric_key_prefix="test")
    # No flips against oneself.
    assert training_flips(now, now)["nfr"] == training_flips(now, now)["nfr_mc"] == 0


def test_best_model_early_stopping_and_logs(tmp_path, sides):
    """The metric exists when the best model is chosen, and for callbacks that were added before."""

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    seen: list[dict] = []
    trainer = make_trainer(
        tmp_path,
        callbacks=[EarlyStoppingCallback(1), Tracker()],
        metric_for_best_model="eval_nfr",
        greater_is_better=False,
        load_best_model_at_end=True,
        save_strategy="epoch",
        num_train_epochs=4,
    )
    trainer.add_callback(FlipMetricsCallback(TASK, ITEMS, sides[0], trainer=trainer))
    trainer.train()
    rates = [entry["eval_nfr"] for entry in trainer.state.log_history if "eval_nfr" in entry]
    assert trainer.state.best_metric == min(rates)
    assert [entry["eval_nfr"] for entry in seen if "eval_nfr" in entry] == rates
    stops = next((i for i in range(1, len(rates)) if rates[i] >= min(rates[:i])), 3)
    assert len(rates) == stops + 1


def test_without_a_trainer_the_history_still_has_them(tmp_path, sides):
    trainer = make_trainer(tmp_path, callbacks=[FlipMetricsCallback(TASK, ITEMS, sides[0])], num_train_epochs=1)
    trainer.train()
    assert [entry["step"] for entry in trainer.state.log_history if "eval_nfr" in entry] == [3]


def test_old_as_file_folder_and_model_agree(tmp_path, sides):
    file = write_predictions(tmp_path / "old.jsonl", reversed(sides[0]))
    make_model(seed=1).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    found = []
    for old in (sides[0], str(file), str(tmp_path / "model"), make_model(seed=1)):
        trainer = make_trainer(tmp_path / "run")
        callback = FlipMetricsCallback(TASK, ITEMS, old, trainer=trainer)
        trainer.add_callback(callback)
        found.append({k: v for k, v in trainer.evaluate().items() if k in ("eval_nfr", "eval_pfr", "eval_acc_old")})
        assert callback.predictions("old") is callback.predictions("old")
    assert found == [found[0]] * 4


def test_several_evaluation_sets_ask_once(tmp_path, sides):
    asked = []
    trainer = make_trainer(tmp_path, num_train_epochs=1)
    trainer.eval_dataset = {"a": rows(), "b": rows()}
    callback = FlipMetricsCallback(TASK, ITEMS, sides[0], trainer=trainer)
    run = callback._run
    callback._run = lambda *args: asked.append(1) or run(*args)
    trainer.add_callback(callback)
    trainer.train()
    assert len(asked) == 1 and len(callback.history) == 1
    assert {"eval_nfr", "eval_a_loss", "eval_b_loss"} <= trainer.evaluate().keys()


def test_similarity_tasks(tmp_path):
    task, items = make_generation_task(4, max_new_tokens=4)
    trainer = make_trainer(tmp_path)
    trainer.add_callback(FlipMetricsCallback(task, items, make_model(seed=1), make_model(seed=2), trainer=trainer))
    metrics = trainer.evaluate()
    assert {"eval_score", "eval_score_old", "eval_score_new", "eval_nfr", "eval_delta_nfr"} <= set(metrics)
    # Mean sizes of gains and of regressions, where there are any.
    assert ("eval_m_r" in metrics, "eval_m_g" in metrics) == (metrics["eval_nfr"] > 0, metrics["eval_pfr"] > 0)
    assert ("eval_delta_nfr_percent" in metrics) == (metrics["eval_nfr_new"] > 0)
    assert not any(value != value for value in metrics.values())


def test_predictions_of_other_items_are_refused(sides):
    with pytest.raises(MuscleError, match="have no answer to 1 of"):
        FlipMetricsCallback(TASK, ITEMS, sides[0][1:])
    changed = [replace(ITEMS[0], prompt="another"), *ITEMS[1:]]
    with pytest.raises(MuscleError, match="other prompts or choices for 1"):
        FlipMetricsCallback(TASK, changed, sides[0])


def test_no_old_model_is_said_before_training(tmp_path):
    with pytest.raises(MuscleError, match="no old model"):
        FlipMetricsCallback(TASK, ITEMS, trainer=make_trainer(tmp_path))
    trainer = make_trainer(tmp_path, callbacks=[FlipMetricsCallback(TASK, ITEMS)])
    for start in (trainer.train, trainer.evaluate):
        with pytest.raises(MuscleError, match="no old model"):
            start()
    assert trainer.state.global_step == 0


def test_the_documented_example_runs(tmp_path, monkeypatch, sides):
    text = (paths.ROOT / "docs" / "howto" / "flips-while-training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- python: callback -->\n```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    write_predictions("v1.jsonl", sides[0])
    names = {"Trainer": Trainer, "TrainingArguments": TrainingArguments, "model": lora_model(), "task": TASK}
    names |= {"train_dataset": rows(), "eval_dataset": rows(), "data_collator": collate, "items": ITEMS}
    names["tokenizer"] = make_tokenizer()
    monkeypatch.setenv("WANDB_DISABLED", "true")
    exec(code, names)
    assert names["trainer"].state.best_metric is not None


def task_models():
    models = lora_model(1), lora_model(2)
    for model in models:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    return models


def muscle_trainer(folder, callbacks=(), models=None, **arguments):
    from muscle_hf import MuscleConfig, MuscleTrainer

    old, new = models or task_models()
    settings = {"num_train_epochs": 1, "report_to": [], "use_cpu": True, "eval_strategy": "epoch", **arguments}
    return MuscleTrainer(
        new,
        MuscleConfig(str(folder), disable_tqdm=True, **settings),
        old_model=old,
        train_dataset=rows(),
        eval_dataset=rows(),
        data_collator=collate,
        processing_class=make_tokenizer(),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("given", ["at construction", "later", "as a type"])
def test_muscle_trainer_makes_itself_known(tmp_path, given):
    """No trainer=: the teachers are its own, and trackers and provenance get the metrics."""

    class Tracker(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append(dict(logs))

    class OfItems(FlipMetricsCallback):
        def __init__(self):
            super().__init__(TASK, ITEMS)

    seen: list[dict] = []
    callback = OfItems if given == "as a type" else FlipMetricsCallback(TASK, ITEMS)
    trainer = muscle_trainer(tmp_path, [Tracker()] + ([callback] if given == "at construction" else []))
    if given != "at construction":
        trainer.add_callback(callback)
    callback = next(c for c in trainer.callback_handler.callbacks if isinstance(c, FlipMetricsCallback))
    before = trainer.evaluate()
    assert before["eval_delta_nfr"] == 0 and before["eval_nfr_against_new"] == 0
    trainer.train()
    trainer.save_model()
    last = callback.history[-1]
    tracked = [entry for entry in seen if "eval_nfr" in entry]
    assert len(tracked) == 2 and tracked[-1]["eval_nfr"] == last["nfr"]
    saved = read_provenance(tmp_path)["metrics"]
    assert {f"eval_{name}": value for name, value in last.items() if name != "step" and value == value}.items() <= (
        saved.items()
    )


def test_the_teachers_answers_are_those_of_the_models(tmp_path):
    models = task_models()
    expected = [evaluate_task(model, make_tokenizer(), TASK, ITEMS, progress=False) for model in models]
    trainer = muscle_trainer(tmp_path, models=models)
    callback = FlipMetricsCallback(TASK, ITEMS, trainer=trainer)
    for role, answers in zip(("old", "new"), expected, strict=True):
        found = callback.predictions(role, make_tokenizer())
        assert [p.prediction for p in found] == [p.prediction for p in answers]


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    """Training with the callback under two processes ends, and both report what one process would."""
    launched([str(paths.SUPPORT / "flip_callback_worker.py"), str(tmp_path)])
    results = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert results[0] == results[1]
