"""A v1 with v2's tokens under other ids trains what a v1 with v2's own ids trains."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import builders
import pytest
import torch
from launching import end, launched
from tokenizer_builders import ORDER, renumbered_model

from muscle_hf import MuscleError
from muscle_hf.objective import MASK_NAMES

WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]
KINDS = {
    "causal LM": (builders.llama, builders.rows),
    "seq2seq LM": (builders.t5, builders.rows),
    "sequence classification": (builders.bert_sequences, builders.sequence_rows),
    "token classification": (builders.bert_tokens, builders.token_rows),
}


def models(kind="causal LM", **settings):
    make, _ = KINDS[kind]
    layers = {"target_modules": ["query", "value"]} if "classification" in kind else {}
    return (builders.with_lora(make(seed, **settings), 10 * seed, **layers) for seed in (1, 2))


def both(folder, kind="causal LM", order=ORDER, **settings):
    """Trainers with v1 as it is, and renumbered, on equal rows."""
    old, new = models(kind)
    table = builders.half_right(KINDS[kind][1](), new)
    mine = {"processing_class": builders.tokenizer(WORDS)}
    other = {**mine, "old_processing_class": builders.tokenizer([WORDS[index] for index in order])}
    made = []
    for name, model, tokenizers in (("same", old, mine), ("other", renumbered_model(old, order), other)):
        student = copy.deepcopy(new)
        made.append(builders.trainer(folder / name, student, model, train_dataset=table, **tokenizers, **settings))
    return made


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("mask", [name for name in MASK_NAMES if "(" not in name])
def test_permuted_tokens_give_the_same_loss_and_gradient(mask, tmp_path):
    found = []
    for trainer in both(tmp_path, mask=mask, compatibility_weight=0.5):
        batch = builders.collate(list(trainer.train_dataset))
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append([loss, *(p.grad for p in trainer.model.parameters() if p.grad is not None)])
    for same, other in zip(*found, strict=True):
        torch.testing.assert_close(other, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_trains_alike(kind, tmp_path):
    same, other = (losses(t) for t in both(tmp_path, kind, max_steps=3, logging_steps=1, save_strategy="no"))
    assert other == pytest.approx(same, rel=1e-5) and len(same) == 3


def test_through_a_cache_and_from_it(tmp_path):
    """Its rows are those of v1's own ids: what v1 says of them serves runs with either tokenizer."""
    settings = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no"}
    same, other = both(tmp_path, **settings)
    expected = losses(same)
    for _ in range(2):
        _, other = both(tmp_path, **settings, teacher_cache=str(tmp_path / "cache"))
        assert losses(other) == pytest.approx(expected, rel=1e-5)
    kept = other._step.sources["old"]
    assert kept.work(other.batch_of(builders.collate(list(other.train_dataset)))) == 0


def test_its_likeliest_tokens_alone_are_not_kept(tmp_path):
    """They are under its own ids."""
    with pytest.raises(MuscleError, match=r"teacher_cache_top_k=4.*exact cache"):
        both(tmp_path, teacher_cache=str(tmp_path / "cache"), teacher_cache_top_k=4)


def test_new_tokens_get_no_target_and_rows_with_them_follow_v2(tmp_path):
    """v1 lacks the last two words: of both models' logits the others are compared, and rows with these are v2's."""
    fewer = builders.VOCABULARY - 2
    _, new = models()
    short = builders.with_lora(builders.llama(1, vocab_size=fewer), 10)
    rows = builders.rows(25, low=5, high=6)
    for row in rows:
        row["input_ids"] = [min(i, fewer - 1) for i in row["input_ids"]]
        row["labels"] = list(row["input_ids"])
    rows[3]["input_ids"][1] = rows[3]["labels"][1] = fewer
    trainer = builders.trainer(
        tmp_path,
        new,
        short,
        train_dataset=rows,
        mask="mean",
        processing_class=builders.tokenizer(WORDS),
        old_processing_class=builders.tokenizer(WORDS[:fewer]),
    )
    batch = builders.collate(rows)
    read = batch | {name: batch[name].clamp(max=fewer - 1) for name in ("input_ids", "labels")}
    student, said = (builders.logits_without_trainer(*given)[:, :-1] for given in ((new, batch), (short, read)))
    logs = [logits[..., :fewer].div(2).log_softmax(-1) for logits in (said, student)]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    kl[3] = 0  # follows v2, which is the student still
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(kl.mean().item() / 2, rel=1e-5)


def test_of_rows_that_are_read_little_is_remembered(tmp_path, monkeypatch):
    _, other = both(tmp_path)
    reader, asked = other.teachers["old"].reader, []
    monkeypatch.setattr("muscle_hf.teachers.reading._KEPT_ROWS", 4)
    agree = type(reader.vocabularies).agree
    monkeypatch.setattr(type(reader.vocabularies), "agree", lambda own, ids: asked.append(ids) or agree(own, ids))
    for count, seed, total in ((3, 1, 3), (3, 1, 3), (9, 2, 12)):
        batch = builders.collate(builders.rows(count, seed, low=40, high=41))
        assert reader.silent(other.batch_of(batch)) is None and len(asked) == total
    assert len(reader._agreed) <= 4 and sum(map(sys.getsizeof, reader._agreed)) < 4 * 128


def test_targets_with_new_tokens_are_not_read_by_a_decoder(tmp_path):
    fewer = builders.VOCABULARY - 8
    rows = [{"input_ids": [5, 6, 7], "labels": [7, word, 8, 9]} for word in [6] * 24 + [44]]
    trainer = builders.trainer(
        tmp_path,
        builders.with_lora(builders.t5(2), 20),
        builders.with_lora(builders.t5(1, fewer), 10),
        train_dataset=rows,
        transfer_dataset=rows[-1:],
        processing_class=builders.tokenizer(WORDS),
        old_processing_class=builders.tokenizer(WORDS[:fewer]),
    )
    batch = trainer.batch_of(trainer.data_collator(list(trainer.train_dataset)[22:]))
    assert trainer.teachers["old"].silent(batch).tolist() == [False] * 8 + [True] * 8


def test_transfer_rows_and_two_processes(tmp_path):
    """Processes count the student's tokens, and both read v1's ids."""
    launched([__file__, str(tmp_path)], {"ACCELERATE_USE_CPU": "true"})


def _in_two_processes(folder):
    settings = {"max_steps": 2, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 2}
    transfer = {"transfer_dataset": builders.rows(6, seed=4)}
    trainers = both(folder, **settings, **transfer)
    same, other = map(losses, trainers)
    assert other == pytest.approx(same, rel=1e-5) and len(same) == 2
    end(trainers[0])


if __name__ == "__main__":
    _in_two_processes(Path(sys.argv[1]))
