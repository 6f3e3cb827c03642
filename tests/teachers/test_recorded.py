"""Teachers that are known by a log of their answers alone."""

from __future__ import annotations

import json
from dataclasses import replace

import builders
import numpy as np
import pytest
import reference
import torch
from recorded_world import (
    CHOICES,
    TASK,
    disturb,
    expected_loss,
    items,
    loss_of,
    made,
    old_model,
    predictions,
    rows,
    tokenizer,
)

from muscle_hf import ChoiceLog, MuscleError, TransferPrompts
from muscle_hf.evaluation import write_predictions
from muscle_hf.training.data import encode_answers, encode_items


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
