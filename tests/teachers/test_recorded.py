"""Teachers that are followed by whole answers: v1 in memory by one number a row, or known by a log alone."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import builders
import numpy as np
import pytest
import reference
import torch
from launching import end, launched
from safetensors.torch import load_file

from muscle_hf import ChoiceLog, MuscleError, TransferPrompts
from muscle_hf.evaluation import Item, Task, evaluate_task, write_predictions
from muscle_hf.teachers.teacher import ModelTeacher
from muscle_hf.training.data import encode_answers, encode_items

WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]
CHOICES = (" w30 w31", " w30 w32 w33", " w34", " w35")
TASK = Task("choose", "choice", to_item=lambda row, index: row)


def tokenizer():
    made = builders.tokenizer(WORDS)
    made.eos_token = "w2"
    return made


def items(count=8, seed=0):
    random = np.random.default_rng(seed)
    prompts = [" ".join(WORDS[i] for i in random.integers(3, 30, random.integers(3, 7))) for _ in range(count)]
    return [Item(str(i), prompt, CHOICES, (int(random.integers(4)),)) for i, prompt in enumerate(prompts)]


def old_model():
    return builders.with_lora(builders.llama(1), 10)


def predictions(asked, model=None):
    return evaluate_task(model or old_model(), tokenizer(), TASK, asked, progress=False)


def rows(asked, *, ended=True, answers_only=False):
    return encode_items(tokenizer(), asked, answers_only=answers_only, end_answers=ended)


def made(folder, old=None, table=None, **settings):
    settings = {"processing_class": tokenizer(), "train_dataset": table or rows(items()), **settings}
    return builders.trainer(folder, old_model=old or old_model(), **settings)


def disturb(trainer):
    """The student is no longer v2."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in trainer.student.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def loss_of(trainer, table, mask="student_wrong"):
    disturb(trainer)
    inputs = trainer.data_collator(table)
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(inputs)).item()


def expected_loss(trainer, table, old_number, *, temperature=2.0):
    """By the reference, row by row, from models that are called alone."""
    total, count = 0.0, 0
    for row in table:
        inputs = builders.collate([row])
        student = builders.logits_without_trainer(trainer.student, inputs)[0, :-1].double().numpy()
        with torch.no_grad():
            new = trainer.teachers["new"].logits({"input_ids": inputs["input_ids"]})[0, :-1].double().numpy()
        labels, tokens = np.array(row["labels"])[1:], np.array(row["input_ids"])[1:]
        trained, answer = labels != -100, np.array(row["completion_mask"])[1:] == 1
        number, length = old_number(row)
        answers = np.where(np.cumsum(answer) <= length, np.where(answer, 0, -1), -1)[trained]
        wrong = (student.argmax(-1) != labels)[trained].astype(float)
        old = {} if number is None else {0: number}
        total += reference.loss_of_answers(
            student[trained], old, new[trained], tokens[trained], answers, wrong, temperature
        )
        count += int(trained.sum())
    return total / count


def likelihood_in_memory(row):
    """Of v1, of all that the completion mask marks."""
    logits = builders.logits_without_trainer(old_model(), builders.collate([row]))[0, :-1].double().log_softmax(-1)
    tokens, answer = torch.tensor(row["input_ids"][1:]), torch.tensor(row["completion_mask"][1:]) == 1
    return float(logits[torch.arange(len(tokens)), tokens][answer].sum()), int(answer.sum())


# ---- v1 in memory ----


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


def test_where_the_cache_has_all_numbers_its_body_is_not_even_loaded(tmp_path):
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
    assert trainer.teachers["old"]._loaded is None
    assert all(torch.equal(weight, trained[1][name]) for name, weight in trained[0].items() if "default" in name)


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


def test_accumulated_batches_are_one_batch(tmp_path):
    found = []
    for size, steps in ((8, 1), (2, 4)):
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 2}
        trainer = made(tmp_path / str(size), old_targets="answer", mask="mean", **settings)
        trainer.train()
        found.append(builders.weights_of(trainer.model))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=2e-5)


# ---- A log alone ----


def test_a_log_says_what_the_model_says(tmp_path):
    """Without ends, a row's answer is the text that was scored."""
    table = rows(items(), ended=False)
    file = write_predictions(tmp_path / "old.jsonl", predictions(items()))
    found = [
        loss_of(made(tmp_path / "out", old, table, old_targets="answer"), table)
        for old in (old_model(), ChoiceLog(file))
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("source", ["file", "predictions", "dictionaries", "frame", "items"])
def test_a_log_may_be_given_in_many_ways(source, tmp_path):
    import pandas

    known, asked = predictions(items()), items()
    own, few = [row.to_dict() for row in known], ("prompt", "choices", "log_likelihoods")
    bare = [
        {
            "id": row["id"],
            "prediction": row["prediction"],
            "log_likelihoods": row["log_likelihoods"],
            "prompt": "v1 is asked otherwise",
            "choices": ["a", "b", "c", "d"],
        }
        for row in own
    ]
    logs = {
        "file": lambda: ChoiceLog(write_predictions(tmp_path / "old.jsonl", known)),
        "predictions": lambda: ChoiceLog(known[:3], known[3:]),
        "dictionaries": lambda: ChoiceLog([{k: row[k] for k in few} for row in own]),
        "frame": lambda: ChoiceLog(pandas.DataFrame(own)),
        "items": lambda: ChoiceLog(bare, items=asked),
    }
    table = rows(asked)
    expected = loss_of(made(tmp_path / "a", ChoiceLog(known), table), table)
    assert loss_of(made(tmp_path / "b", logs[source](), table), table) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", ["answer", "choices"])
def test_padding_on_either_side_and_without_a_mask_changes_nothing(form, tmp_path):
    table = rows(items(), answers_only=True)
    trainer = made(tmp_path, ChoiceLog(predictions(items())), table, old_targets=form, mask="mean")
    disturb(trainer)
    plain = builders.collate(table)
    width = plain["input_ids"].size(1)
    lengths = plain["attention_mask"].sum(1).tolist()
    left = {
        name: torch.stack([ids.roll(width - length) for ids, length in zip(plain[name], lengths, strict=True)])
        for name in ("input_ids", "labels", "attention_mask")
    }
    bare = {name: plain[name] for name in ("input_ids", "labels")}
    found = []
    for inputs in (plain, left, bare):
        with torch.no_grad():
            _, terms = trainer._step(trainer.model, trainer.batch_of(inputs), trainer.muscle_objective, "here")
        found.append((terms.weight_old, terms.kl_old))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_splits_may_number_their_rows_alike(tmp_path):
    train, other = items(), items(seed=5)
    log = ChoiceLog([*predictions(train), *predictions(other), *predictions(train)])
    for table in (rows(train), rows(other)):
        batch = made(tmp_path, log, table).batch_of(builders.collate(table))
        assert log.unknown(batch) == []


def scored(row, asked, known):
    """The logged number of a row's answer, and of how many tokens that is."""
    for item, prediction in zip(asked, known, strict=True):
        for choice, value in zip(item.choices, prediction.log_likelihoods, strict=True):
            (ids,) = encode_answers(tokenizer(), [(item.prompt, choice)], end_answers=False)
            if (
                row["input_ids"][: len(ids["input_ids"])] == ids["input_ids"]
                and len(row["input_ids"]) <= len(ids["input_ids"]) + 1
            ):
                return value, sum(ids["completion_mask"])
    return None, 0


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("answers_only", [True, False])
def test_the_number_of_a_log_is_that_of_the_text_without_its_end(ended, answers_only, tmp_path):
    asked, known = items(), predictions(items())
    table = rows(asked, ended=ended, answers_only=answers_only)
    trainer = made(tmp_path, ChoiceLog(known), table)
    assert trainer.old_targets == "answer"
    found = loss_of(trainer, table)
    assert found == pytest.approx(expected_loss(trainer, table, lambda row: scored(row, asked, known)), rel=1e-4)


@pytest.mark.parametrize("chunk", [0, 2, None])
def test_choices_are_followed_at_each_place_of_the_row(chunk, tmp_path):
    asked, known = items(), predictions(items())
    table = rows(asked)
    trainer = made(tmp_path, ChoiceLog(known), table, old_targets="choices", mask="always_old", loss_chunk_size=chunk)
    found, total, count = loss_of(trainer, table), 0.0, 0
    texts = [encode_answers(tokenizer(), [("w3", choice)])[0] for choice in CHOICES]
    ended = [tuple(row["input_ids"][1:]) for row in texts]
    for item, prediction, row in zip(asked, known, table, strict=True):
        inputs = builders.collate([row])
        student = builders.logits_without_trainer(trainer.student, inputs)[0, :-1].double().numpy()
        with torch.no_grad():
            new = trainer.teachers["new"].logits({"input_ids": inputs["input_ids"]})[0, :-1].double().numpy()
        path = ended[item.answers[0]]
        shares = reference.softmax(np.array(prediction.log_likelihoods))
        target = reference.choice_targets(ended, shares, path, builders.VOCABULARY)
        with np.errstate(divide="ignore"):
            target = np.maximum(np.log(target), -1e4)
        first = len(row["input_ids"]) - len(path) - 1
        for i in range(len(student)):
            total += reference.kl(np.maximum(target[i - first], -1000) if i >= first else new[i], student[i], 2.0)
        count += len(student)
    assert found == pytest.approx(total / count, rel=1e-4)


def test_both_models_may_be_logs_and_then_no_body_runs_but_the_students(tmp_path):
    asked, new = items(), builders.with_lora(builders.llama(2), 20)
    logs = ChoiceLog(predictions(asked)), ChoiceLog(predictions(asked, new))
    trainer = made(tmp_path, logs[0], new_model=logs[1], mask="mean", model=builders.with_lora(builders.llama(2), 20))
    assert [teacher.role for teacher in logs] == ["old", "new"]
    calls = []
    handle = trainer.student.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    handle.remove()
    assert len(calls) == trainer.state.global_step == 2
    saved = json.loads((tmp_path / "muscle_provenance.json").read_text()) if trainer.save_model() is None else None
    assert saved["objective"]["old_targets"] == saved["new"]["answers"]["targets"] == "answer"
    assert saved["new"]["base"]["sha256"] and saved["new"]["answers"]["rows"] == 8
    assert saved["old"]["answers"]["sha256"] != saved["new"]["answers"]["sha256"]


def test_it_resumes_with_the_log_that_it_was_trained_with_alone(tmp_path):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    made(tmp_path, ChoiceLog(predictions(items())), **settings).train()
    changed = [replace(row, log_likelihoods=[-1.0, -2.0, -3.0, -4.0]) for row in predictions(items())]
    with pytest.raises(MuscleError, match="answers"):
        made(tmp_path, ChoiceLog(changed), **settings).train(resume_from_checkpoint=True)


def test_the_card_says_what_was_followed(tmp_path):
    few = [
        {"prompt": row.prompt, "prediction": row.prediction, "choices": row.choices} for row in predictions(items())
    ]
    trainer = made(tmp_path, ChoiceLog(few), max_steps=1)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    card = (tmp_path / "README.md").read_text()
    assert "| old targets | `choices` |" in card and "answers in memory" in card


def test_what_a_log_does_not_know_follows_v2(tmp_path):
    asked = items(40)
    table = rows(asked)
    known = ChoiceLog(predictions(asked[2:]))
    trainer = made(tmp_path, known, table, mask="always_old")
    batch = trainer.batch_of(trainer.data_collator(table[:4]))
    assert known.unknown(batch) == [0, 1]
    silent = known.silent(batch)
    assert bool(silent[batch.rows < 2].all()) and not bool(silent[batch.rows >= 2].all())


# ---- Answers as texts ----


def test_a_text_is_followed_where_it_is_right(tmp_path):
    asked = [replace(item, choices=(), answers=(), references=(" w30 w31",)) for item in items()]
    said = [
        {"id": item.id, "prompt": item.prompt, "prediction": "w30 w31" if i % 2 else "w34"}
        for i, item in enumerate(asked)
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    table = encode_items(tokenizer(), asked, answers_only=True)
    trainer = made(tmp_path, str(file), table, mask="always_old", temperature=1.0)
    assert trainer.old_targets == "choices"
    disturb(trainer)
    inputs = trainer.data_collator(table)
    batch = trainer.batch_of(inputs)
    silent = trainer.teachers["old"].silent(batch)
    assert silent.tolist() == [row % 2 == 0 for row in batch.rows.tolist()]
    with torch.no_grad():
        _, terms = trainer._step(trainer.model, batch, trainer.muscle_objective, "here")
    torch.testing.assert_close(terms.kl_old[~silent], terms.cross_entropy[~silent], rtol=1e-4, atol=1e-5)
    assert terms.weight_old.tolist() == (~silent).float().tolist()


@pytest.mark.parametrize(("logs", "ids"), [(1, 1), (2, 1), (1, 4)])
def test_several_samples_are_shares(logs, ids, tmp_path):
    """Of one item, or of several that ask the same."""
    prompt = items()[0].prompt
    texts = ["w30 w31"] * 3 + [" w34"]
    said = [{"id": number % ids, "prompt": prompt, "prediction": text} for number, text in enumerate(texts)]
    log = ChoiceLog(*(said[start::logs] for start in range(logs)))
    table = encode_answers(tokenizer(), [(prompt, " w30 w31")] * 2, answers_only=True)
    trainer = made(tmp_path, log, table)
    batch = trainer.batch_of(trainer.data_collator(table))
    found = trainer.teachers["old"].targets(batch).logits(slice(0, 3), torch.zeros(3, builders.VOCABULARY))
    expected = torch.zeros(3, builders.VOCABULARY)
    expected[0, 30], expected[0, 34], expected[1, 31], expected[2, 2] = 0.75, 0.25, 1, 1
    torch.testing.assert_close(found.softmax(-1), expected)


def test_empty_answers_are_answers_to_known_prompts(tmp_path):
    """v1 says nothing of these rows; it is no log of other items."""
    asked = items()
    said = [
        {"prompt": item.prompt, "prediction": item.choices[item.answers[0]] if i % 2 else " "}
        for i, item in enumerate(asked)
    ]
    log = ChoiceLog(said)
    trainer = made(tmp_path, log, rows(asked))
    batch = trainer.batch_of(builders.collate(rows(asked)))
    assert log.unknown(batch) == [] and set(batch.rows[~log.silent(batch)].tolist()) == {1, 3, 5, 7}


# ---- Transfer rows ----


@pytest.mark.parametrize("answers", ["old", "both", "choices"])
def test_a_log_answers_transfer_prompts(answers, tmp_path):
    asked, transfer = items(), items(6, seed=5)
    log = ChoiceLog(predictions(asked), predictions(transfer))
    prompts = TransferPrompts([replace(item, answers=()) for item in transfer], answers, TASK)
    trainer = made(tmp_path, log, rows(asked), transfer_dataset=prompts, max_steps=1)
    trainer.train()
    found = trainer.train_dataset.transfer
    said = [item.choices[row.prediction] for item, row in zip(transfer, predictions(transfer), strict=True)]
    of_old = encode_answers(
        tokenizer(), [(item.prompt, text) for item, text in zip(transfer, said, strict=True)], answers_only=True
    )
    assert found == of_old if answers == "old" else all(row in found for row in of_old)
    batch = trainer.batch_of(trainer.data_collator([trainer.train_dataset[8 + i] for i in range(len(found))]))
    assert log.unknown(batch) == []
    stream = log.targets(batch)
    assert torch.equal(stream.tokens, batch.next_tokens)
    assert torch.equal(stream.spoken, batch.next_tokens != 2)


# ---- Evaluation, streams, processes ----


def test_the_flip_callback_takes_the_log(tmp_path):
    from muscle_hf import FlipMetricsCallback

    asked = items(20)
    callback = FlipMetricsCallback(TASK, asked[:6])
    trainer = made(
        tmp_path, ChoiceLog(predictions(asked)), rows(asked), callbacks=[callback], eval_dataset=rows(asked[:6]),
    )  # fmt: skip
    found = trainer.evaluate()
    right = [row.correct for row in predictions(asked[:6])]
    assert found["eval_acc_old"] == pytest.approx(np.mean(right)) and found["eval_nfr"] <= found["eval_acc_old"]
    other = FlipMetricsCallback(TASK, items(4, seed=3))
    settings = {"callbacks": [other], "eval_dataset": rows(asked)}
    with pytest.raises(MuscleError, match="muscle-hf evaluate"):
        made(tmp_path, ChoiceLog(predictions(asked)), rows(asked), **settings).evaluate()


def test_a_stream_is_looked_at_in_its_first_step(tmp_path):
    from datasets import Dataset

    asked = items()
    settings = {"max_steps": 1, "accelerator_config": {"dispatch_batches": False}}
    stream = Dataset.from_list(rows(asked)).to_iterable_dataset()
    made(tmp_path, ChoiceLog(predictions(asked)), stream, **settings).train()
    with pytest.raises(MuscleError, match=asked[0].prompt):
        made(tmp_path, ChoiceLog(predictions(items(seed=9))), stream, **settings).train()


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


# ---- What is refused ----


def known_log():
    return ChoiceLog(predictions(items()))


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
        (
            lambda: ChoiceLog([{"prompt": items()[0].prompt, "prediction": "w3"}]),
            {"old_targets": "answer"},
            "likelihood",
        ),
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


if __name__ == "__main__":
    end(run(Path(sys.argv[1]), sys.argv[2], 2))
