"""What works in Trainer works in MuscleTrainer: data, logs, evaluation, prediction, best model, search."""

from __future__ import annotations

import copy
import json
import warnings

import builders
import numpy as np
import pytest
import torch
from builders import with_lora
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
)

from muscle_hf import MuscleConfig, MuscleError, MuscleTrainer
from muscle_hf.objective import MASKS
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.training.provenance import read_provenance

FIGURES = ("loss", "kl_old", "kl_new", "ce", "share_old", "token_accuracy")


class Log(TrainerCallback):
    def __init__(self):
        self.entries = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.entries.append(dict(logs))


def rows():
    return builders.half_right(builders.rows(), with_lora(builders.llama(2), 20))


# ---- Logged figures ----


def test_figures_of_training_and_evaluation_are_logged_apart(tmp_path):
    log = Log()
    trainer = builders.trainer(
        tmp_path, train_dataset=rows(), eval_dataset=rows(), eval_strategy="steps", eval_steps=1, callbacks=[log]
    )
    trainer.train()
    train = [entry for entry in log.entries if "loss" in entry]
    evaluation = [entry for entry in log.entries if "eval_loss" in entry]
    assert len(train) == len(evaluation) == 2
    assert all(name in entry for entry in train for name in FIGURES)
    assert all(f"eval_{name}" in entry for entry in evaluation for name in FIGURES)
    assert not any(name in entry for entry in evaluation for name in FIGURES), "nothing of training in evaluation's"
    for entry in train:
        mixed = entry["share_old"] * entry["kl_old"] + (1 - entry["share_old"]) * entry["kl_new"]
        assert entry["loss"] == pytest.approx(mixed, rel=1e-5)
        assert entry["share_old"] == pytest.approx(1 - entry["token_accuracy"])


def test_a_figure_of_no_token_is_left_out_and_the_state_is_json(tmp_path):
    settings = {
        "mask": "always_old",
        "save_strategy": "steps",
        "save_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    trainer = builders.trainer(tmp_path, train_dataset=rows(), eval_dataset=rows(), **settings)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if {"loss", "eval_loss"} & entry.keys()]
    assert len(entries) == 4
    assert not any("kl_new" in name for entry in entries for name in entry)
    text = (tmp_path / "checkpoint-2" / "trainer_state.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["log_history"]
    nothing = [{**row, "labels": [-100] * len(row["labels"])} for row in rows()]
    assert not any(builders.is_figure(name) for name in trainer.evaluate(nothing))


class OutOfMemory(TrainerCallback):
    """At the first batch size only."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.train_batch_size == 4:
            raise RuntimeError("CUDA out of memory.")


def test_nothing_of_a_batch_size_that_was_too_large_is_in_the_first_log(tmp_path):
    settings = {"learning_rate": 0.0, "train_sampling_strategy": "sequential", "logging_steps": 2}
    restarted = builders.trainer(tmp_path / "1", auto_find_batch_size=True, callbacks=[OutOfMemory()], **settings)
    restarted.train()
    assert restarted.state.train_batch_size == 3
    fresh = builders.trainer(tmp_path / "2", per_device_train_batch_size=3, **settings)
    fresh.train()
    for name in FIGURES:
        assert restarted.state.log_history[0].get(name) == pytest.approx(fresh.state.log_history[0].get(name)), name


def test_figures_are_means_over_the_tokens_of_all_steps_since_the_last_log(tmp_path):
    whole = builders.trainer(tmp_path / "1", train_dataset=rows(), per_device_train_batch_size=8, learning_rate=0.0)
    whole.train()
    parts = builders.trainer(tmp_path / "2", train_dataset=rows(), logging_steps=2, learning_rate=0.0)
    parts.train()
    expected, got = whole.state.log_history[0], parts.state.log_history[0]
    for name in FIGURES[1:]:
        assert got[name] == pytest.approx(expected[name], rel=1e-5)


def test_training_loss_is_the_mean_over_steps_as_in_trainer(tmp_path):
    losses = []
    for every in (1, 2):
        trainer = builders.trainer(tmp_path / str(every), train_dataset=rows(), logging_steps=every)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[1] == [pytest.approx(np.mean(losses[0]))]


def test_tensorboard_gets_the_figures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = builders.trainer(
        tmp_path, train_dataset=rows(), eval_dataset=rows(), report_to="tensorboard", hub_token="hf_secretsecret"
    )
    trainer.train()
    trainer.evaluate()
    files = list(tmp_path.rglob("events.out.tfevents*"))
    tags = {tag for file in files for tag in EventAccumulator(str(file)).Reload().Tags()["scalars"]}
    assert {f"train/{name}" for name in FIGURES} | {f"eval/{name}" for name in FIGURES} <= tags
    assert not any(b"hf_secretsecret" in file.read_bytes() for file in files)


# ---- Evaluation and prediction ----


def accuracy(prediction):
    answers = prediction.predictions.argmax(-1)[:, :-1]
    labels = prediction.label_ids[:, 1:]
    kept = labels != -100
    return {"accuracy": float((answers == labels)[kept].mean())}


def test_compute_metrics_sees_logits_and_labels(tmp_path):
    trainer = builders.trainer(tmp_path, eval_dataset=rows(), compute_metrics=accuracy)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(metrics["eval_token_accuracy"])
    metrics = trainer.evaluate({"a": rows()[:4], "b": rows()[4:]})
    assert metrics["eval_a_accuracy"] == pytest.approx(metrics["eval_a_token_accuracy"])
    assert {"eval_a_kl_old", "eval_b_kl_old"} <= metrics.keys()


def test_predict_with_and_without_labels(tmp_path):
    trainer = builders.trainer(tmp_path)
    table = builders.without(rows(), "completion_mask")
    batch = builders.collate(table)
    expected = builders.logits_without_trainer(trainer.model, batch)
    labelled = trainer.predict(table)
    assert {f"test_{name}" for name in FIGURES} <= labelled.metrics.keys()
    assert (labelled.label_ids == batch["labels"].numpy()).all()
    trainer.data_collator = lambda part: {k: v for k, v in builders.collate(part).items() if k != "labels"}
    unlabelled = trainer.predict(table)
    assert unlabelled.label_ids is None
    assert "test_loss" not in unlabelled.metrics
    for output in (labelled, unlabelled):
        for row, logits, exact in zip(table, output.predictions, expected, strict=True):
            length = len(row["input_ids"])
            assert np.allclose(logits[:length], exact[:length], atol=1e-4)


def test_preprocessed_logits_and_accumulated_evaluation(tmp_path):
    trainer = builders.trainer(
        tmp_path,
        eval_dataset=rows(),
        compute_metrics=lambda p: {"shape": len(p.predictions), "dims": p.predictions.ndim},
        preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
        eval_accumulation_steps=1,
    )
    metrics = trainer.evaluate()
    assert metrics["eval_shape"] == 8
    assert metrics["eval_dims"] == 2


def test_best_model_is_loaded_at_the_end(tmp_path):
    trainer = builders.trainer(
        tmp_path, train_dataset=rows(), eval_dataset=rows(), max_steps=4, eval_strategy="steps",
        save_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, logging_steps=100,
        # The worst is called the best: training makes it better, so the best is not the last.
        metric_for_best_model="loss", greater_is_better=True,
    )  # fmt: skip
    trainer.train()
    losses = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    best = max(losses, key=losses.get)
    assert best != 4
    assert trainer.state.best_global_step == best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    assert trainer.final_metrics()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    # A second training in this trainer begins with figures of its own.
    trainer.train()
    for step in range(1, 5):
        told = read_provenance(tmp_path / f"checkpoint-{step}")["metrics"]
        (said,) = [entry for entry in trainer.state.log_history if entry["step"] == step and "eval_loss" in entry]
        assert told["eval_loss"] == said["eval_loss"]


def test_early_stopping_on_a_figure_of_the_objective(tmp_path):
    trainer = builders.trainer(
        tmp_path, train_dataset=rows(), eval_dataset=rows(), max_steps=50, learning_rate=0.0, eval_strategy="steps",
        save_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, save_total_limit=1,
        metric_for_best_model="kl_old", greater_is_better=False,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3


@pytest.mark.parametrize(
    "evaluations",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1},
        {"eval_strategy": "no"},
    ],
    ids=["once", "twice, with checkpoints", "after training"],
)
def test_hyper_parameter_search_over_the_methods_own_settings(evaluations, tmp_path):
    pytest.importorskip("optuna")
    model = {"kinds": 0}

    def model_init():
        model["kinds"] += 1
        return with_lora(builders.llama(2), 20)

    seen = []
    trainer = builders.trainer(
        tmp_path, model_init=model_init, train_dataset=rows(), eval_dataset=rows(), **evaluations
    )
    trainer.add_callback(Seen(trainer, seen))
    best = search(trainer, "temperature", [1.0, 4.0])
    times = 2 if evaluations.get("eval_steps") == 1 else 1
    assert sorted(temperature for temperature, _ in seen) == [1.0] * times + [4.0] * times, "each with its own setting"
    losses = dict(seen)
    assert losses[1.0] != losses[4.0]
    assert best.objective == pytest.approx(min(losses.values())), "the loss is minimised, not the sum of the figures"
    assert model["kinds"] == 3


def test_hyper_parameter_search_with_a_compact_cache(tmp_path):
    pytest.importorskip("optuna")

    def searched(folder, **settings):
        seen = []
        trainer = builders.trainer(
            folder, model_init=lambda: with_lora(builders.llama(2), 20), train_dataset=rows(), eval_dataset=rows(),
            eval_strategy="steps", eval_steps=1, **settings,
        )  # fmt: skip
        trainer.add_callback(Seen(trainer, seen))
        search(trainer, "temperature", [1.0, 4.0])
        return dict(seen)

    # All of the vocabulary is kept, so only rows kept at another temperature could change the loss.
    whole = searched(tmp_path / "whole")
    kept = searched(tmp_path / "kept", teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=builders.VOCABULARY)
    assert kept == pytest.approx(whole, rel=1e-4)


def test_a_trial_that_does_not_fit_the_cache_is_refused(tmp_path):
    pytest.importorskip("optuna")
    trainer = builders.trainer(
        tmp_path, model_init=lambda: with_lora(builders.llama(2), 20), train_dataset=rows(), eval_dataset=rows(),
        teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=8,
    )  # fmt: skip
    with pytest.raises(MuscleError, match="not for masks that read a teacher's logits"):
        search(trainer, "mask", ["old_right"])


class Starts(TrainerCallback):
    """What each trial has at its first step."""

    def __init__(self):
        self.seen = []

    def bind_trainer(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        weights = adapter_parameters(self.trainer.student, STUDENT_ADAPTER)
        kept = {name: parameter.detach().clone() for name, parameter in weights.items()}
        self.seen.append((copy.copy(args), len(self.trainer.train_dataset), kept))


@pytest.mark.parametrize(("name", "values"), [("transfer_ratio", [1.0, 0.25]), ("start_from", ["old", "new"])])
def test_what_is_searched_over_holds_from_a_trials_first_step(name, values, tmp_path):
    pytest.importorskip("optuna")
    old, starts = with_lora(builders.llama(1), 10), Starts()
    adapters = {"old": old, "new": with_lora(builders.llama(2), 20)}
    expected = {start: {**adapter_parameters(model, "default")} for start, model in adapters.items()}
    trainer = builders.trainer(
        tmp_path, old_model=old, model_init=lambda: with_lora(builders.llama(2), 20), train_dataset=rows(),
        eval_dataset=rows(), transfer_dataset=rows(), callbacks=[starts],
    )  # fmt: skip
    search(trainer, name, values)
    assert {getattr(args, name) for args, _, _ in starts.seen} == set(values)
    for args, length, weights in starts.seen:
        assert length == 8 + (8 if args.transfer_ratio is None else 8 * args.transfer_ratio)
        assert weights.keys() == expected[args.start_from].keys()
        assert all(torch.equal(w, expected[args.start_from][key]) for key, w in weights.items())


@pytest.mark.parametrize("setting", [{"preset": ["consensus"]}, {"calibrate_teachers": [True]}])
def test_a_search_over_what_no_trial_can_vary_is_refused(setting, tmp_path):
    pytest.importorskip("optuna")
    trainer = builders.trainer(
        tmp_path, model_init=lambda: with_lora(builders.llama(2), 20), train_dataset=rows(), eval_dataset=rows()
    )
    ((name, values),) = setting.items()
    with pytest.raises(MuscleError, match=name):
        search(trainer, name, values)


def test_model_init_with_an_old_base_that_has_no_padding_token(tmp_path):
    trainer = builders.trainer(
        tmp_path, old_model=with_lora(builders.llama(1, pad_token_id=None), 10), train_dataset=rows(),
        model_init=lambda: with_lora(builders.llama(2, pad_token_id=None), 20), processing_class=builders.tokenizer(),
    )  # fmt: skip
    trainer.train()
    assert trainer.teachers["old"].model.get_base_model().config.pad_token_id == builders.tokenizer().pad_token_id


def search(trainer, name, values):
    return trainer.hyperparameter_search(
        hp_space=lambda trial: {name: trial.suggest_categorical(name, values)}, n_trials=len(values), backend="optuna",
        sampler=grid(name, values),
    )  # fmt: skip


def grid(name, values):
    from optuna.samplers import GridSampler

    return GridSampler({name: values})


class Seen(TrainerCallback):
    """The objective's temperature and the loss at each evaluation."""

    def __init__(self, trainer, seen):
        self.trainer, self.seen = trainer, seen

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.seen.append((self.trainer.muscle_objective.temperature, metrics["eval_loss"]))


# ---- Arguments ----


def test_plain_training_arguments_train_with_the_methods_defaults(tmp_path):
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, use_cpu=True, report_to="none", save_strategy="no", logging_steps=1,
        per_device_train_batch_size=8, disable_tqdm=True,
    )  # fmt: skip
    plain = builders.trainer(tmp_path, args=arguments, train_dataset=rows())
    plain.train()
    own = builders.trainer(tmp_path, train_dataset=rows(), max_steps=1, per_device_train_batch_size=8)
    own.train()
    assert plain.state.log_history[0]["loss"] == own.state.log_history[0]["loss"]


def test_positional_arguments_are_trainers(tmp_path):
    trainer = MuscleTrainer(
        with_lora(builders.llama(2), 20), builders.config(tmp_path), builders.collate, rows(), rows()[:3],
        old_model=with_lora(builders.llama(1), 10),
    )  # fmt: skip
    assert trainer.data_collator is builders.collate
    assert len(trainer.train_dataset) == 8
    assert len(trainer.eval_dataset) == 3


def test_no_arguments_at_all_as_in_trainer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = MuscleTrainer(with_lora(builders.llama(2), 20), old_model=with_lora(builders.llama(1), 10))
    assert isinstance(trainer.args, MuscleConfig)


# A likelihood mask: its warning that there is no cross-entropy would be wrong here. And one that weights the label.
@pytest.mark.parametrize(("mask", "accumulation"), [("old_likelier", 1), ("old_likelier", 2), ("dissonance", 1)])
def test_own_loss_function_takes_the_place_of_the_cross_entropy(mask, accumulation, tmp_path):
    def cross_entropy(outputs, labels, num_items_in_batch=None):
        logits, targets = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
        return total / num_items_in_batch

    settings = {
        "mask": MASKS[mask],
        "compatibility_weight": 0.6,
        "max_steps": 1,
        "gradient_accumulation_steps": accumulation,
    }
    settings.update(train_dataset=rows(), eval_dataset=rows())
    own = builders.trainer(tmp_path / "1", compute_loss_func=cross_entropy, **settings)
    plain = builders.trainer(tmp_path / "2", **settings)
    assert own.evaluate()["eval_ce"] == pytest.approx(plain.evaluate()["eval_ce"])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*unstable.*")
        own.train()
    plain.train()
    for name in ("loss", "grad_norm"):
        assert own.state.log_history[0][name] == pytest.approx(plain.state.log_history[0][name], rel=1e-5)


def test_label_smoothing_is_trainers(tmp_path):
    from transformers.trainer_pt_utils import LabelSmoother

    settings = {"compatibility_weight": 0.6, "label_smoothing_factor": 0.2, "train_dataset": rows()}
    trainer = builders.trainer(tmp_path, eval_dataset=rows(), **settings)
    batch = builders.collate(rows())
    outputs = {"logits": builders.logits_without_trainer(trainer.model, batch)}
    expected = LabelSmoother(0.2)(outputs, batch["labels"], shift_labels=True).item()
    assert trainer.evaluate()["eval_ce"] == pytest.approx(expected, rel=1e-5)


def test_mask_in_the_config_by_name_and_in_the_call_by_function_are_the_same(tmp_path):
    settings = {"train_dataset": rows(), "max_steps": 1}
    by_name = builders.trainer(tmp_path, **settings, trained_tokens="completion", args=None, mask=MASKS["old_right"])
    by_function = builders.trainer(tmp_path, **settings, trained_tokens="completion", mask=MASKS["old_right"].function)
    for trainer in (by_name, by_function):
        trainer.train()
    assert by_name.state.log_history[0]["loss"] == by_function.state.log_history[0]["loss"]
    assert by_function.muscle_objective.mask.name == "old_right"


# ---- Data ----


@pytest.fixture(scope="module")
def story_models(shared_dir):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folders = [str(shared_dir / "models" / name) for name in ("stories260k", "stories260k_update")]
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, lambda: [
        with_lora(AutoModelForCausalLM.from_pretrained(folder), seed, init_lora_weights=True)
        for seed, folder in enumerate(folders)
    ]


ANIMALS = ("dog", "cat", "bird", "very big cow")
TEXTS = [f"Once upon a time there was a {animal} who liked to play." for animal in ANIMALS]


def test_language_modelling_script_on_real_models(story_models, tmp_path):
    datasets = pytest.importorskip("datasets")
    tokenizer, load = story_models
    old, model = load()
    table = datasets.Dataset.from_dict({"text": TEXTS, "number": [1, 2, 3, 4]})
    table = table.map(lambda row: tokenizer(row["text"]))
    trainer = builders.trainer(
        tmp_path, model, old, train_dataset=table, eval_dataset=table, processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    )  # fmt: skip
    with torch.no_grad():
        batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(text) for text in TEXTS])
        own = model.eval()(**batch).loss.item()
    metrics = trainer.evaluate()
    assert metrics["eval_ce"] == pytest.approx(own, rel=1e-5)
    assert metrics["eval_kl_new"] == 0
    assert 0 < metrics["eval_share_old"] < 0.8
    trainer.train()


def test_plain_lists_and_datasets_give_the_same_run(story_models, tmp_path):
    datasets = pytest.importorskip("datasets")
    tokenizer, load = story_models
    plain = [{**tokenizer(text), "labels": tokenizer(text)["input_ids"]} for text in TEXTS]
    logged = []
    for index, table in enumerate((plain, datasets.Dataset.from_list([{**row, "extra": "x"} for row in plain]))):
        old, model = load()
        trainer = builders.trainer(
            tmp_path / str(index), model, old, train_dataset=table, processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer), train_sampling_strategy="group_by_length",
        )  # fmt: skip
        trainer.train()
        logged.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert logged[0] == logged[1]


def test_completion_mask_survives_the_removal_of_unused_columns(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = [{**row, "extra": "x"} for row in rows()]
    settings = {"trained_tokens": "completion", "max_steps": 1, "per_device_train_batch_size": 8}
    trainer = builders.trainer(tmp_path / "1", train_dataset=datasets.Dataset.from_list(table), **settings)
    trainer.train()
    masked = [
        {**row, "labels": [y if kept else -100 for y, kept in zip(row["labels"], row["completion_mask"], strict=True)]}
        for row in rows()
    ]
    same = builders.trainer(tmp_path / "2", train_dataset=masked, max_steps=1, per_device_train_batch_size=8)
    same.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(same.state.log_history[0]["loss"], rel=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_with_max_steps(workers, tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            while True:
                yield from builders.without(rows(), "completion_mask")

    trainer = builders.trainer(tmp_path, train_dataset=Stream(), max_steps=3, dataloader_num_workers=workers)
    assert trainer.train().global_step == 3


def test_streams_of_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    stream = datasets.Dataset.from_list(rows()).to_iterable_dataset()
    trainer = builders.trainer(tmp_path, train_dataset=stream, eval_dataset=stream)
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_kl_old"] > 0


@pytest.mark.parametrize("trained_tokens", ["labels", "completion"])
def test_collator_that_makes_shift_labels(trained_tokens, tmp_path):
    def shifted(table):
        batch = builders.collate(table)
        labels = torch.nn.functional.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
        return {**batch, "shift_labels": labels}

    losses = []
    for collator in (builders.collate, shifted):
        trainer = builders.trainer(
            tmp_path, train_dataset=rows(), data_collator=collator, max_steps=1, trained_tokens=trained_tokens
        )
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
