"""One interface for every kind of teacher: what they say of a batch is what the model alone says, by one suite."""

from __future__ import annotations

import contextlib

import builders
import pytest
import torch
from loopback import serving
from tokenizer_builders import ORDER, renumbered_model

from muscle_hf import MuscleError
from muscle_hf.pipeline.caching import cache_teachers

# kind -> how it is made: v1 on the student's base or on its own; whole logits or apart; before and behind a cache.
KINDS = {
    "on the student's base": {"base": 2},
    "on the student's base, whole logits": {"base": 2, "loss_chunk_size": 0},
    "on a base of its own": {"base": 1},
    "on a base of its own, whole logits": {"base": 1, "loss_chunk_size": 0},
    "behind an empty cache": {"base": 1, "cache": True},
    "from a full cache": {"base": 1, "cache": True, "full": True},
    "from a full cache, by its name": {"base": 1, "cache": True, "full": True, "by_name": True},
    "its likeliest tokens, all of them": {"base": 1, "cache": True, "teacher_cache_top_k": builders.VOCABULARY},
    "with its tokens under other ids": {"base": 1, "order": ORDER},
    "behind a server": {"base": 1, "served": True},
}
WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]


@pytest.fixture(params=KINDS)
def case(request, tmp_path):
    """A trainer, a batch on its device, and the logits of v1 loaded alone."""
    with contextlib.ExitStack() as stack:
        yield made_case(dict(KINDS[request.param]), tmp_path, stack)


def made_case(how, tmp_path, stack):
    base = builders.llama(how.pop("base"))
    base.save_pretrained(tmp_path / "base")
    old = builders.with_lora(base, 10)
    old.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    old.save_pretrained(tmp_path / "old")
    table = builders.rows(5)
    inputs = builders.collate(table)
    alone = builders.logits_without_trainer(old, inputs)
    cached, full, by_name, served = (how.pop(name, False) for name in ("cache", "full", "by_name", "served"))
    order = how.pop("order", None)
    settings = {**how, "train_dataset": table, **({"teacher_cache": str(tmp_path / "cache")} if cached else {})}
    if order is not None or served:
        settings["processing_class"] = builders.tokenizer(WORDS)
    if order is not None:
        settings["old_processing_class"] = builders.tokenizer([WORDS[index] for index in order])
        old = renumbered_model(old, order)

    def made(given):
        return builders.trainer(tmp_path / "out", builders.with_lora(builders.llama(2), 20), given, **settings)

    if served:
        settings["old_model_kwargs"] = {"model": "v1", "top_k": builders.VOCABULARY}
        old = stack.enter_context(serving({"v1": old.eval()}, settings["processing_class"], greedy=True))
    trainer = made(old)
    if full:
        cache_teachers(trainer, tmp_path / "cache")
        trainer = made(str(tmp_path / "old") if by_name else old)
    batch = trainer.batch_of(inputs)
    return trainer, batch, batch.of_trained(alone)


def said(trainer, batch, expected, needed=None):
    """The logits that v1's targets are made into for tokens of some rows, and those expected of them."""
    stream = trainer._step.sources["old"].targets(batch, needed)
    rows = torch.arange(len(batch.rows)) if needed is None else needed[batch.rows].nonzero().squeeze(-1)
    student = torch.randn(len(batch.rows), builders.VOCABULARY)
    with torch.no_grad():
        return stream.logits(rows, student, rows).log_softmax(-1), expected[rows].log_softmax(-1)


def test_targets_are_what_the_model_alone_says(case):
    for _ in range(2):  # the second time from what the first may have kept
        torch.testing.assert_close(*said(*case), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[1, 3], [0]])
def test_of_rows_that_are_needed_they_are_the_same(case, rows):
    needed = torch.zeros(len(case[1]), dtype=torch.bool)
    needed[rows] = True
    found, expected = said(*case, needed)
    assert len(found) == int(needed[case[1].rows].sum())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_they_have_no_gradient_and_leave_the_student_and_the_random_state_alone(case):
    trainer, batch, _ = case
    trainer.model.train()
    modes = [module.training for module in trainer.model.modules()]
    state = torch.get_rng_state()
    stream = trainer._step.sources["old"].targets(batch)
    assert not stream.hidden.requires_grad
    assert torch.equal(state, torch.get_rng_state())
    assert trainer.model.active_adapter == "default"
    assert modes == [module.training for module in trainer.model.modules()]


def test_work_is_what_is_left_to_compute(case, request):
    trainer, batch, _ = case
    source = trainer._step.sources["old"]
    all_of_it = trainer.teachers["old"].work(batch)
    # What is not here computes nothing here.
    assert (all_of_it > 0) is bool(trainer.teachers["old"].models)
    full = "full cache" in request.node.callspec.params["case"]
    assert source.work(batch) == (0 if full else all_of_it)


def test_the_model_answers_as_the_teacher(case):
    trainer, batch, expected = case
    teacher = trainer.teachers["old"]
    if not teacher.models:
        with pytest.raises(MuscleError, match="not here"):
            teacher.answering()
        return
    with teacher.answering() as model:
        batch = teacher.reading(batch)
        inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
        found = batch.of_trained(model(**inputs).logits)
    if teacher.reader is not None:
        found = found.index_select(-1, ORDER.argsort())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert trainer.model.active_adapter == "default"


def test_the_step_knows_no_kind(case):
    """The loss through the step is that of the model alone, whichever kind its source is."""
    trainer, batch, expected = case
    with torch.no_grad():
        new = batch.of_trained(trainer.teachers["new"].logits(batch.inputs))
        terms = trainer.muscle_objective(new, expected, new, batch.targets, batch.sequences)
        found = trainer.compute_loss(trainer.model, dict(batch.inputs))
    assert found.item() == pytest.approx(terms.loss.mean().item(), rel=1e-4)
