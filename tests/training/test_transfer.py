"""Rows without labels: mixed with labelled ones, answered by the models, trained towards the teachers."""

from __future__ import annotations

import functools
import json
import math
import sys
from pathlib import Path

import builders
import datasets
import pytest
import torch
from launching import end, launched
from safetensors.torch import load_file
from transformers import DataCollatorForLanguageModeling

from muscle_hf import MuscleError, TransferPrompts
from muscle_hf.evaluation import Item, Task
from muscle_hf.objective import kl_divergence, resolve_mask
from muscle_hf.teachers.adapters import frozen_view
from muscle_hf.training.transfer_rows import MarkingCollator, MixedRows


def transfer_rows(count=6, seed=9):
    return builders.rows(count, seed)


def models():
    return builders.with_lora(builders.llama(2), 20), builders.with_lora(builders.llama(1), 10)


def prompts(count=5):
    return [f"w{index + 3} w{index + 7} w{index + 5}" for index in range(count)]


def trainer(folder, model=None, old=None, **settings):
    mine, other = models()
    return builders.trainer(folder, model or mine, old or other, **{"max_steps": 4, "learning_rate": 1e-2, **settings})


def teacher_logits(made, batch):
    return {role: teacher.logits({k: batch[k] for k in ("input_ids", "attention_mask")}) for role, teacher in
            made.teachers.items()}  # fmt: skip


# ---- The objective on mixed batches ----


@pytest.mark.parametrize("chunk", [0, 3, None])
def test_loss_of_a_mixed_batch(chunk, tmp_path):
    labelled, other = builders.rows(4), transfer_rows(4)
    settings = {"transfer_mask": "mean(0.7)", "compatibility_weight": 0.6, "loss_chunk_size": chunk}
    made = trainer(tmp_path, train_dataset=labelled, transfer_dataset=other, **settings)
    with torch.no_grad():
        for weight in made.student.parameters():
            if weight.requires_grad:
                weight.add_(0.05)
    mixed = made.train_dataset
    batch = made.data_collator([mixed[0], mixed[1], mixed[4], mixed[5]])
    assert batch["unlabelled"].tolist() == [False, False, True, True]
    loss = made.compute_loss(made.model, batch).item()
    only_labelled = made.data_collator([mixed[0], mixed[1]])
    of_labelled = made.compute_loss(made.model, only_labelled).item()

    with frozen_view(made.student, "default"):
        student = made.student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    trained = batch["labels"][:, 1:] != -100
    teachers = {role: logits[:, :-1] for role, logits in teacher_logits(made, batch).items()}
    rows = torch.arange(4).unsqueeze(1).expand_as(trained)
    chosen = trained & (rows >= 2)
    kls = {role: kl_divergence(logits[chosen], student[chosen], 2.0) for role, logits in teachers.items()}
    of_transfer = 0.6 * (0.7 * kls["old"] + 0.3 * kls["new"]).sum().item()
    counts = int((trained & (rows < 2)).sum()), int(chosen.sum())
    assert loss == pytest.approx((of_labelled * counts[0] + of_transfer) / sum(counts), rel=1e-5)


def test_the_ids_of_transfer_labels_do_not_matter(tmp_path):
    other = transfer_rows()
    changed = [{**row, "labels": [y if y == -100 else 3 for y in row["labels"]]} for row in other]
    adapters = []
    for name, rows in (("a", other), ("b", changed)):
        made = trainer(tmp_path / name, transfer_dataset=rows, compatibility_weight=0.5)
        made.train()
        adapters.append(builders.weights_of(made.model))
    assert all(torch.equal(weight, adapters[1][key]) for key, weight in adapters[0].items())
    plain = trainer(tmp_path / "c", compatibility_weight=0.5)
    plain.train()
    assert any(not torch.equal(w, adapters[0][key]) for key, w in builders.weights_of(plain.model).items())


@pytest.mark.parametrize("mask", ["more_confident", "more_confident_sequence", "always_old"])
def test_chunks_and_cache_change_nothing(mask, tmp_path):
    found = []
    for name, settings in (
        ("plain", {"loss_chunk_size": 0}),
        ("chunks", {"loss_chunk_size": 3}),
        ("cache", {"teacher_cache": str(tmp_path / "cache")}),
    ):
        made = trainer(tmp_path / name, transfer_dataset=transfer_rows(), transfer_mask=mask, **settings)
        made.train()
        found.append(builders.weights_of(made.model))
    for other in found[1:]:
        for key, weight in found[0].items():
            torch.testing.assert_close(weight, other[key], rtol=1e-3, atol=2e-5)


def test_logged_figures_of_labels_are_those_of_labelled_rows(tmp_path):
    made = trainer(
        tmp_path, transfer_dataset=transfer_rows(), logging_steps=1, per_device_train_batch_size=14, max_steps=1,
        train_dataset=builders.rows(8), loss_chunk_size=0,
    )  # fmt: skip
    made.train()
    alone = trainer(tmp_path / "alone", logging_steps=1, per_device_train_batch_size=8, max_steps=1)
    alone.train()
    for name in ("ce", "token_accuracy"):
        assert made.state.log_history[0][name] == pytest.approx(alone.state.log_history[0][name], rel=1e-5)


def test_a_classifier_needs_no_labels_on_transfer_rows(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "labels"} for row in builders.sequence_rows(6, seed=4)]
    model = builders.with_lora(builders.bert_sequences(2), 20, task_type="SEQ_CLS")
    old = builders.with_lora(builders.bert_sequences(1), 10, task_type="SEQ_CLS")
    labelled = builders.sequence_rows()
    made = trainer(tmp_path, model, old, train_dataset=labelled, transfer_dataset=rows, transfer_mask="always_old")
    batch = made.data_collator([made.train_dataset[len(labelled)]])
    student = made.student(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = kl_divergence(teacher_logits(made, batch)["old"], student, 2.0).item()
    assert made.compute_loss(made.model, batch).item() == pytest.approx(expected, rel=1e-5)
    assert math.isfinite(made.train().training_loss)


@pytest.mark.parametrize("label", [-1, -100, 7])
def test_a_label_of_a_classifiers_transfer_row_does_not_matter(label, tmp_path):
    def trained(**changes):
        rows = [{**row, **changes} for row in builders.without(builders.sequence_rows(6, seed=4), "labels")]
        made = trainer(
            tmp_path, builders.with_lora(builders.bert_sequences(2), 20, task_type="SEQ_CLS"),
            builders.with_lora(builders.bert_sequences(1), 10, task_type="SEQ_CLS"),
            train_dataset=builders.sequence_rows(), transfer_dataset=rows, compatibility_weight=0.5,
        )  # fmt: skip
        return made.train().training_loss

    assert trained(labels=label) == trained()


@pytest.mark.parametrize("chunk", [0, None])
@pytest.mark.parametrize("mask", ["student_wrong", "label_likelihood"])
def test_any_label_but_the_ignored_one_marks_a_trained_token(mask, chunk, tmp_path):
    def trained(**marks):
        rows = [{**row, "labels": [i if i == -100 else marks.get("mark", i) for i in row["labels"]]}
                for row in transfer_rows()]  # fmt: skip
        made = trainer(tmp_path, transfer_dataset=rows, mask=resolve_mask(mask), loss_chunk_size=chunk)
        return made.train().training_loss

    assert trained(mark=-1) == trained(mark=10_000) == trained()


# ---- Mixing ----


def test_every_row_of_both_is_seen_in_an_epoch(tmp_path):
    mixed = MixedRows([{"a": i} for i in range(3)], [{"a": 10 + i} for i in range(4)])
    assert len(mixed) == 7
    assert sorted((mixed[i]["a"], mixed[i]["unlabelled"]) for i in range(7)) == [
        (0, False), (1, False), (2, False), (10, True), (11, True), (12, True), (13, True),
    ]  # fmt: skip
    with pytest.raises(IndexError):
        mixed[7]
    assert mixed[-7]["a"] == 0


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 2), (1.0, 4), (2.5, 10)])
def test_a_ratio_goes_on_through_the_transfer_rows_from_epoch_to_epoch(ratio, count):
    mixed = MixedRows([{"a": i} for i in range(4)], [{"a": 10 + i} for i in range(6)], ratio)
    assert len(mixed) == 4 + count
    seen = []
    for epoch in range(3):
        mixed.start_epoch(epoch)
        seen += [mixed[4 + i]["a"] for i in range(count)]
    counts = [seen.count(10 + i) for i in range(6)]
    assert max(counts) - min(counts) <= 1, "some rows were taken more often than others"


def test_the_loader_moves_through_the_transfer_rows(tmp_path):
    made = with_a_ratio(tmp_path)
    seen = transfer_rows_in(made)
    made.train()
    assert sorted(seen) == [0, 1, 2, 3]


def test_a_run_that_goes_on_in_mid_epoch_takes_the_rows_of_that_epoch(tmp_path):
    whole = with_a_ratio(tmp_path, save_strategy="steps", save_steps=1)
    whole.train()
    resumed = with_a_ratio(tmp_path)
    seen = transfer_rows_in(resumed)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))  # of 3 steps an epoch
    assert seen
    expected = builders.weights_of(whole.model)
    assert all(torch.equal(weight, expected[key]) for key, weight in builders.weights_of(resumed.model).items())


def test_workers_that_would_keep_the_first_epochs_rows_are_refused(tmp_path):
    with pytest.raises(MuscleError, match="dataloader_persistent_workers"):
        with_a_ratio(tmp_path, dataloader_num_workers=1, dataloader_persistent_workers=True)


def with_a_ratio(folder, batch=2, **settings):
    """Two epochs of four labelled rows and two of the four transfer rows each."""
    return trainer(
        folder, train_dataset=builders.rows(4), transfer_dataset=transfer_rows(4), transfer_ratio=0.5, max_steps=-1,
        num_train_epochs=2, per_device_train_batch_size=batch, **settings,
    )  # fmt: skip


def transfer_rows_in(made):
    """Fills with the numbers of the transfer rows that are trained on."""
    numbers = {tuple(row["input_ids"]): number for number, row in enumerate(transfer_rows(4))}
    seen, collate = [], made.data_collator.collate

    def noting(rows):
        seen.extend(numbers[ids] for row in rows if (ids := tuple(row["input_ids"])) in numbers)
        return collate(rows)

    made.data_collator = MarkingCollator(noting)
    return seen


def test_datasets_and_unused_columns(tmp_path):
    labelled = datasets.Dataset.from_list([{**row, "text": "x"} for row in builders.rows()])
    other = datasets.Dataset.from_list([{**row, "source": "log"} for row in transfer_rows()])
    made = trainer(tmp_path, train_dataset=labelled, transfer_dataset=other)
    batch = next(iter(made.get_train_dataloader()))
    assert "unlabelled" in batch and "text" not in batch
    assert math.isfinite(made.train().training_loss)


# ---- Prompts that the models answer ----


def kept_answers(folder):
    files = sorted(folder.glob("transfer_answers/*.jsonl"))
    return {file.name.rsplit("-", 1)[0]: [json.loads(line)["prediction"] for line in file.open()] for file in files}


@pytest.mark.parametrize("answers", ["old", "new", "both"])
def test_teachers_answer(answers, tmp_path):
    asked = TransferPrompts(prompts(), answers, max_new_tokens=3, end_answers=False)
    made = trainer(tmp_path, transfer_dataset=asked, processing_class=builders.tokenizer())
    made.answer_transfer_prompts()
    found = kept_answers(tmp_path)
    assert set(found) == ({"old", "new"} if answers == "both" else {answers})
    rows = made.train_dataset.transfer
    spoken = [made.tokenizer.decode([i for i in row["labels"] if i != -100]) for row in rows]
    expected = [
        text
        for texts in zip(*(found[role] for role in ("old", "new") if role in found), strict=True)
        for text in dict.fromkeys(texts)
    ]
    assert spoken == expected
    role = "new" if answers == "new" else "old"
    ids = torch.tensor([row["input_ids"] for row in rows[:1]])
    says = made.teachers[role].logits({"input_ids": ids, "attention_mask": torch.ones_like(ids)}).argmax(-1)
    assert says[0, 2:-1].tolist() == ids[0, 3:].tolist(), "not the teacher's own greedy answer"
    made.train()
    assert made.state.global_step == 4


def test_answers_are_kept_and_not_asked_twice(tmp_path, monkeypatch):
    asked = TransferPrompts(prompts(), "old", max_new_tokens=3)
    first = trainer(tmp_path, transfer_dataset=asked, processing_class=builders.tokenizer())
    first.train()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("transfer_answers/*")}
    assert before
    second = trainer(tmp_path, transfer_dataset=asked, processing_class=builders.tokenizer())
    second.train()
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.glob("transfer_answers/*")}
    other = builders.with_lora(builders.llama(5), 10)
    third = trainer(tmp_path, old=other, transfer_dataset=asked, processing_class=builders.tokenizer())
    third.answer_transfer_prompts()
    assert len(list(tmp_path.glob("transfer_answers/old-*"))) == 2, "another teacher, other answers"


def test_the_student_answers_anew_in_each_epoch(tmp_path):
    asked = TransferPrompts(prompts(), "student", max_new_tokens=4)
    settings = {
        "train_dataset": builders.rows(6), "transfer_dataset": asked, "processing_class": builders.tokenizer(),
        "max_steps": -1, "num_train_epochs": 3, "learning_rate": 0.1, "save_strategy": "epoch",
    }  # fmt: skip
    made = trainer(tmp_path, **settings)
    made.train()
    found = kept_answers(tmp_path)
    assert set(found) == {"student-0", "student-1", "student-2"}
    assert found["student-0"] != found["student-2"], "the student has not changed"
    whole = builders.weights_of(made.model)
    checkpoint = sorted(tmp_path.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))[1]
    resumed = trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert all(torch.equal(weight, whole[key]) for key, weight in builders.weights_of(resumed.model).items())


def items():
    return [
        Item(id=str(i), prompt=f"w{i + 3} w{i + 8}", choices=(" w1 w2", " w4 w9", " w6"), answers=(0,))
        for i in range(6)
    ]


def choice_task():
    return Task("pick", "choice", lambda row, index: items()[index])


def test_choices(tmp_path):
    made = trainer(
        tmp_path, processing_class=builders.tokenizer(),
        transfer_dataset=TransferPrompts(items(), "choices", choice_task(), end_answers=False),
    )  # fmt: skip
    made.answer_transfer_prompts()
    texts = [made.tokenizer.decode(row["input_ids"]) for row in made.train_dataset.transfer]
    assert texts == [item.prompt + choice for item in items() for choice in item.choices]
    likeliest = TransferPrompts(items(), "old", choice_task(), end_answers=False)
    made = trainer(tmp_path, processing_class=builders.tokenizer(), transfer_dataset=likeliest)
    made.answer_transfer_prompts()
    chosen = kept_answers(tmp_path)["old"]
    texts = [made.tokenizer.decode(row["input_ids"]) for row in made.train_dataset.transfer]
    expected = [item.prompt + item.choices[i] for item, i in zip(items(), chosen, strict=True)]
    assert texts == expected


def test_right_answers_are_preferred(tmp_path):
    settings = {"max_new_tokens": 3, "end_answers": False}
    both = trainer(tmp_path, transfer_dataset=TransferPrompts(prompts(), "both", **settings),
                   processing_class=builders.tokenizer())  # fmt: skip
    both.answer_transfer_prompts()
    found = kept_answers(tmp_path)
    differs = [i for i in range(5) if found["old"][i] != found["new"][i]]
    assert differs
    right = {str(i): found["new"][i] for i in differs}

    def checker(item, answer):
        return answer == right.get(item.id)

    made = trainer(tmp_path, transfer_dataset=TransferPrompts(prompts(), "old", checker=checker, **settings),
                   processing_class=builders.tokenizer())  # fmt: skip
    made.answer_transfer_prompts()
    spoken = [made.tokenizer.decode([i for i in row["labels"] if i != -100]) for row in made.train_dataset.transfer]
    assert spoken == [found["new" if i in differs else "old"][i] for i in range(5)]


def test_the_card_and_provenance_know_of_transfer_rows(tmp_path):
    asked = TransferPrompts(prompts(), "old", max_new_tokens=3)
    made = trainer(tmp_path, transfer_dataset=asked, transfer_mask="mean(0.65)", processing_class=builders.tokenizer())
    made.train()
    made.save_model()
    saved = json.loads((tmp_path / "muscle_provenance.json").read_text())
    assert saved["objective"]["transfer_mask"] == "mean(0.65)"
    assert saved["data"]["transfer"]["rows"] == 5 and saved["data"]["transfer"]["answers"] == "old"
    assert saved["data"]["train"]["rows"] == 8


# ---- Two processes, and TRL ----


def run_with_prompts(folder, batch):
    made = trainer(
        folder, train_dataset=builders.rows(8), processing_class=builders.tokenizer(), max_steps=-1,
        num_train_epochs=2, per_device_train_batch_size=batch, train_sampling_strategy="sequential",
        learning_rate=0.05,
        transfer_dataset=TransferPrompts(prompts(8), "student", max_new_tokens=4, end_answers=False),
    )  # fmt: skip
    made.train()
    made.save_model(str(folder / "saved"))
    return made


@pytest.mark.slow
def test_two_processes_answer_and_train_as_one(tmp_path):
    run_with_prompts(tmp_path / "one", 4)
    launched([__file__, str(tmp_path / "two")], {"ACCELERATE_USE_CPU": "true"})
    assert kept_answers(tmp_path / "one") == kept_answers(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "saved" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


@pytest.mark.slow
def test_two_processes_take_the_transfer_rows_that_one_takes(tmp_path):
    run_with_a_ratio(tmp_path / "one", 2)
    launched([__file__, str(tmp_path / "two"), "ratio"], {"ACCELERATE_USE_CPU": "true"})
    one, two = (load_file(tmp_path / name / "saved" / "adapter_model.safetensors") for name in ("one", "two"))
    assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


def run_with_a_ratio(folder, batch):
    made = with_a_ratio(folder, batch, train_sampling_strategy="sequential", learning_rate=0.05)
    made.train()
    made.save_model(str(folder / "saved"))
    return made


@pytest.mark.parametrize("completion_only", [True, False])
def test_trls_trainer_mixes_them_too(completion_only, tmp_path):
    sft = pytest.importorskip("muscle_hf.sft", reason="TRL needs the extra muscle-hf[trl]")
    tokenizer = builders.tokenizer()
    tokenizer.eos_token = "w2"
    args = sft.MuscleSFTConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True, disable_tqdm=True,
        logging_steps=1, completion_only_loss=completion_only, transfer_mask="always_old", save_strategy="no",
    )  # fmt: skip
    labelled = datasets.Dataset.from_list([{"prompt": f"w{i} w4", "completion": " w7 w9"} for i in range(5, 9)])
    model, old = models()
    made = sft.MuscleSFTTrainer(
        model, args, old_model=old, train_dataset=labelled, processing_class=tokenizer,
        transfer_dataset=TransferPrompts(prompts(4), "old", max_new_tokens=3),
    )  # fmt: skip
    made.answer_transfer_prompts()
    rows = [made.train_dataset[i] for i in range(len(made.train_dataset))]
    batch = made.data_collator(rows)
    trained = (batch["labels"] != -100).sum(dim=1).tolist()
    assert batch["unlabelled"].tolist() == [False] * 4 + [True] * 4
    answers = [sum(label != -100 for label in row["labels"]) for row in made.train_dataset.transfer]
    assert trained[4:] == answers, "something else than the answers is trained on in transfer rows"
    assert math.isfinite(made.train().training_loss)


# ---- Refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transfer_dataset": []}, "transfer_dataset is empty"),
        ({"transfer_dataset": [{"input_ids": [3, 4]}]}, "have no column 'labels'"),
        ({"transfer_dataset": [{"labels": [3, 4]}]}, "lack input_ids"),
        ({"transfer_dataset": [{**row, "labels": [-100] * len(row["labels"])} for row in transfer_rows()]},
         "every label of the transfer rows"),
        ({"transfer_dataset": transfer_rows(), "transfer_ratio": 0.0}, "it must be > 0"),
        ({"transfer_dataset": transfer_rows(), "transfer_mask": "student_wrong"}, "looks at the labels"),
        ({"transfer_dataset": transfer_rows(), "compute_loss_func": lambda *a, **k: 0, "compatibility_weight": 0.5},
         "which the rows of transfer_dataset do not have"),
    ],
)  # fmt: skip
def test_what_cannot_be_mixed_is_refused(settings, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        trainer(tmp_path, **settings)


def test_prompts_that_cannot_be_answered_are_refused(tmp_path):
    for arguments, message in (
        (([],), "no transfer prompts"),
        ((prompts(), "teacher"), "choose one of old, new, both, student, choices"),
        ((prompts(), "choices"), "has no choices"),
        ((items(), "old"), "pass the task="),
    ):
        with pytest.raises(MuscleError, match=message):
            TransferPrompts(*arguments)
    for answers, task, asked in (("student", None, prompts()), ("choices", choice_task(), items())):
        with pytest.raises(MuscleError, match="a checker chooses among the teachers' answers"):
            TransferPrompts(asked, answers, task, checker=lambda item, answer: True)
    classifier = builders.with_lora(builders.bert_sequences(2), 20, task_type="SEQ_CLS")
    old = builders.with_lora(builders.bert_sequences(1), 10, task_type="SEQ_CLS")
    with pytest.raises(MuscleError, match="made for causal LMs"):
        trainer(tmp_path, classifier, old, train_dataset=builders.sequence_rows(),
                transfer_dataset=TransferPrompts(prompts()))  # fmt: skip
    with pytest.raises(MuscleError, match="pass the tokenizer as processing_class"):
        trainer(tmp_path, transfer_dataset=TransferPrompts(prompts()))


def test_packing_collators_are_refused(tmp_path):
    def packed(rows):
        return builders.collate([functools.reduce(lambda a, b: {k: a[k] + b[k] for k in a}, rows)])

    with pytest.raises(MuscleError, match="packs several rows into one"):
        trainer(tmp_path, transfer_dataset=transfer_rows(), data_collator=packed)


def test_collators_that_make_labels_of_prompts_are_refused(tmp_path):
    tokenizer = builders.tokenizer()
    settings = {
        "train_dataset": [{"input_ids": row["input_ids"]} for row in builders.rows()],
        "processing_class": tokenizer, "data_collator": DataCollatorForLanguageModeling(tokenizer, mlm=False),
    }  # fmt: skip
    with pytest.raises(MuscleError, match=r"DataCollatorForLanguageModeling.* makes labels itself.* not on the"):
        trainer(tmp_path, transfer_dataset=transfer_rows(), **settings)
    asked = trainer(tmp_path, transfer_dataset=TransferPrompts(prompts(), "old", max_new_tokens=3), **settings)
    with pytest.raises(MuscleError, match="makes labels itself"):
        asked.train()
    # Labels that name every token are what such a collator makes.
    whole = [{**row, "labels": row["input_ids"]} for row in transfer_rows()]
    assert math.isfinite(trainer(tmp_path, transfer_dataset=whole, **settings).train().training_loss)


if __name__ == "__main__":
    run, batch = (run_with_a_ratio, 1) if "ratio" in sys.argv else (run_with_prompts, 2)
    end(run(Path(sys.argv[1]), batch))
