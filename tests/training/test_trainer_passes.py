"""The trainer without whole logits: the same losses and adapters as with them, whatever is skipped or kept."""

from __future__ import annotations

import functools

import builders
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer

from muscle_hf import MuscleError
from muscle_hf.objective import MASKS
from muscle_hf.teachers import ModelTeacher

pytestmark = pytest.mark.filterwarnings("ignore:.*unstable without the auxiliary cross-entropy")
PLAIN = {"loss_chunk_size": 0}


def with_lora(model, seed, **settings):
    torch.manual_seed(seed)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **settings}
    return get_peft_model(model, LoraConfig(**settings))


def models(build=builders.llama):
    return with_lora(build(2), 20), with_lora(build(1), 10)


def trained(folder, settings, rows=None, build=builders.llama, steps=4, before=None):
    """The adapter and the logs of a few steps."""
    model, old = models(build)
    rows = rows or builders.half_right(builders.rows(), model)
    trainer = builders.trainer(
        folder, model, old, train_dataset=rows, eval_dataset=rows, max_steps=steps, learning_rate=1e-2, **settings
    )
    if before is not None:
        before(trainer)
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return trainer, weights, trainer.evaluate()


def assert_same_run(one, other, rel=2e-5):
    for name, weight in one[1].items():
        torch.testing.assert_close(weight, other[1][name], rtol=1e-3, atol=rel)
    for name in filter(builders.is_figure, one[2]):
        assert other[2][name] == pytest.approx(one[2][name], rel=1e-4)


@pytest.mark.parametrize("build", [builders.llama, builders.gemma2, builders.t5])
def test_a_run_in_chunks_is_the_run_on_whole_logits(build, tmp_path):
    settings = {"compatibility_weight": 0.6}
    plain = trained(tmp_path / "1", {**settings, **PLAIN}, build=build)
    chunked = trained(tmp_path / "2", {**settings, "loss_chunk_size": 3, "skip_unneeded_teachers": False}, build=build)
    assert plain[0]._step.head is None
    assert chunked[0]._step.head is not None, "the head was not taken apart"
    assert_same_run(plain, chunked)


def short_answers(model, old):
    """Rows with one trained token each, the prompt before it: what skipping is for."""
    rows = builders.half_right(builders.half_right(builders.rows(), model), old)
    for row in rows:
        last = max(i for i, label in enumerate(row["labels"]) if label != -100)
        row["labels"] = [-100] * last + row["labels"][last : last + 1] + [-100] * (len(row["labels"]) - last - 1)
    return rows


@pytest.mark.parametrize("mask", list(MASKS))
def test_a_run_with_skipped_bodies_is_the_run_without(mask, tmp_path):
    rows = short_answers(*models())
    seen = {}

    def watch(trainer):
        for role, teacher in trainer.teachers.items():
            forward = teacher.logits
            teacher.logits = lambda inputs, role=role, forward=forward: (
                seen.setdefault(role, []).append(len(inputs["input_ids"])) or forward(inputs)
            )

    settings = {"mask": mask, "compatibility_weight": 0.6}
    whole = trained(tmp_path / "1", {**settings, "skip_unneeded_teachers": False}, rows)
    skipped = trained(tmp_path / "2", settings, rows, before=watch)
    assert_same_run(whole, skipped)
    batch = whole[0].args.train_batch_size
    counts = {role: sum(numbers) for role, numbers in seen.items()}
    calls = 4 + len(whole[0].get_eval_dataloader())
    unread = {"old", "new"} - MASKS[mask].reads
    seen_rows = sum(counts.get(role, 0) for role in unread)
    assert not unread or seen_rows < calls * batch * len(unread), "no row was kept from a teacher"


def test_a_resumed_run_skips_as_it_would_have_before(tmp_path):
    rows = short_answers(*models())
    settings = {
        "max_steps": 6,
        "learning_rate": 1e-2,
        "train_dataset": rows,
        "save_strategy": "steps",
        "save_steps": 3,
    }
    whole = builders.trainer(tmp_path / "whole", *models(), **settings)
    whole.train()
    resumed = builders.trainer(tmp_path / "resumed", *models(), **settings)
    seen = []
    forward = resumed.teachers["new"].logits
    resumed.teachers["new"].logits = lambda inputs: seen.append(len(inputs["input_ids"])) or forward(inputs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert sum(seen) < 3 * resumed.args.train_batch_size, "nothing was skipped"
    weights = dict(resumed.model.named_parameters())
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, weights[name]), name


def test_before_the_first_step_the_kl_to_v2_is_exactly_zero_where_bodies_could_be_skipped(tmp_path):
    model, old = models()
    rows = builders.half_right(builders.rows(), model)
    rows = [row for index, row in enumerate(rows) for _ in range(index + 1)]
    trainer = builders.trainer(tmp_path, model, old, train_dataset=rows, eval_dataset=rows)
    assert trainer._step.head is not None
    assert trainer.evaluate()["eval_kl_new"] == 0


def test_positions_behind_the_last_trained_token_are_not_computed(tmp_path):
    model, old = models()
    rows = builders.rows()
    for row in rows:
        row["labels"] = row["labels"][:4] + [-100] * (len(row["labels"]) - 4)
    trainer = builders.trainer(tmp_path, model, old, train_dataset=rows)
    lengths = []
    model.get_base_model().model.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].size(1)), with_kwargs=True
    )
    batch = builders.collate(rows)
    with torch.no_grad():
        cut = trainer.compute_loss(trainer.model, batch)
    assert set(lengths) == {8}, "three positions count, and lengths stay multiples of eight"
    trainer._step.head = None
    with torch.no_grad():
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(cut.item(), rel=1e-5)


def test_outputs_that_someone_asks_for_have_whole_logits(tmp_path):
    model, old = models()
    rows = builders.rows()
    trainer = builders.trainer(tmp_path, model, old, train_dataset=rows, eval_dataset=rows)
    batch = builders.collate(rows)
    _, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert outputs.logits.shape[:2] == batch["input_ids"].shape
    assert trainer.predict(rows).predictions.shape[-1] == outputs.logits.size(-1)


def test_a_head_that_does_more_than_is_known_gets_whole_logits(tmp_path, caplog):
    model, old = models()
    base = model.get_base_model()
    forward = base.forward

    @functools.wraps(forward)
    def squared(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits * outputs.logits.abs()
        return outputs

    base.forward = squared
    rows = builders.rows()
    trainer = builders.trainer(tmp_path, model, old, train_dataset=rows)
    batch = builders.collate(rows)
    loss = trainer.compute_loss(trainer.model, batch)
    assert trainer._step.head is None
    assert loss.item() == trainer.compute_loss(trainer.model, batch).item() > 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"loss_chunk_size": -1}, "must be >= 1"), ({"loss_chunk_size": 8, "torch_compile": True}, "compiled model")],
)
def test_a_chunk_size_that_cannot_be_used_is_refused(settings, reason, tmp_path):
    with pytest.raises(MuscleError, match=reason):
        builders.trainer(tmp_path, *models(), **settings)


# ---- The teacher cache ----


def test_a_cached_run_is_the_run_online(tmp_path):
    rows = builders.half_right(builders.rows(ignore=0), models()[0])
    online = trained(tmp_path / "1", {}, rows)
    for turn in ("2", "3"):  # filled while training, then read
        cached = trained(tmp_path / turn, {"teacher_cache": str(tmp_path / "cache")}, rows)
        assert_same_run(online, cached)


def test_with_everything_cached_no_teacher_is_run(tmp_path):
    rows = builders.half_right(builders.rows(), models()[0])
    settings = {"teacher_cache": str(tmp_path / "cache"), "mask": "old_likelier", "compatibility_weight": 0.5}
    trained(tmp_path / "1", {**settings, "skip_unneeded_teachers": False}, rows, steps=8)

    def forbid(trainer):
        for teacher in trainer.teachers.values():
            teacher.logits = lambda inputs: pytest.fail("a teacher ran")

    again = trained(tmp_path / "2", settings, rows, steps=8, before=forbid)
    assert again[2]["eval_loss"] > 0


def test_the_cache_of_another_teacher_is_not_used(tmp_path):
    rows = builders.half_right(builders.rows(), models()[0])
    folder = str(tmp_path / "cache")
    trained(tmp_path / "1", {"teacher_cache": folder}, rows)
    other = with_lora(builders.llama(1), 11)
    trainer = builders.trainer(
        tmp_path / "2", models()[0], other, train_dataset=rows, eval_dataset=rows, teacher_cache=folder
    )
    assert len(trainer._step.sources["old"].store) == 0
    assert len(trainer._step.sources["new"].store) > 0
    plain = builders.trainer(tmp_path / "3", models()[0], with_lora(builders.llama(1), 11), eval_dataset=rows)
    assert trainer.evaluate()["eval_kl_old"] == pytest.approx(plain.evaluate()["eval_kl_old"], rel=1e-5)


def test_a_disk_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    from muscle_hf.cache import room

    monkeypatch.setattr(room, "_SPARE_BYTES", 2**60)
    with pytest.raises(MuscleError, match="room for"):
        trained(tmp_path, {"teacher_cache": str(tmp_path / "cache")})


def test_a_cache_where_it_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(MuscleError, match=r"teacher_cache.*few classes"):
        builders.trainer(
            tmp_path, with_lora(builders.bert_sequences(2), 2, task_type="SEQ_CLS"),
            with_lora(builders.bert_sequences(1), 1, task_type="SEQ_CLS"),
            train_dataset=builders.sequence_rows(), teacher_cache=str(tmp_path / "cache"),
        )  # fmt: skip


@pytest.fixture
def old_on_disk(tmp_path):
    """v1 as users have it: a base's folder and its adapter's."""
    base = builders.llama(1)
    base.save_pretrained(tmp_path / "base-v1")
    base.config._name_or_path = str(tmp_path / "base-v1")
    old = with_lora(base, 10)
    old.peft_config["default"].base_model_name_or_path = str(tmp_path / "base-v1")
    old.save_pretrained(tmp_path / "task-v1")
    return str(tmp_path / "task-v1")


def from_disk(folder, old, rows, **settings):
    return builders.trainer(
        folder, models()[0], old, train_dataset=rows, eval_dataset=rows, max_steps=4, learning_rate=1e-2, **settings
    )


def test_a_cached_old_model_goes_to_the_device_when_a_row_is_missing(old_on_disk, tmp_path):
    rows = builders.half_right(builders.rows(ignore=0), models()[0])
    cache = {"teacher_cache": str(tmp_path / "cache"), "skip_unneeded_teachers": False}
    from_disk(tmp_path / "1", old_on_disk, rows[:4], **cache).train()

    def asked(rows):
        """A trainer on part of the cache, whose v1 would go to another device, and when it goes."""
        trainer = from_disk(tmp_path / "2", old_on_disk, rows, **cache)
        teacher = trainer.teachers["old"]
        assert isinstance(teacher, ModelTeacher) and teacher._device is not None
        found = trainer.evaluate()
        return teacher._device is None, found

    assert not asked(rows[:4])[0], "all that is asked for is in the cache"
    moved, found = asked(rows)
    assert moved
    expected = from_disk(tmp_path / "3", old_on_disk, rows, loss_chunk_size=0).evaluate()
    for name in filter(builders.is_figure, expected):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_where_the_cache_is_stays_private(old_on_disk, tmp_path):
    rows = builders.half_right(builders.rows(), models()[0])
    trainer = from_disk(tmp_path / "out", old_on_disk, rows, teacher_cache=str(tmp_path / "secret-place"))
    trainer.train()
    trainer.save_model()
    for file in (tmp_path / "out").glob("*.*"):
        assert b"secret-place" not in file.read_bytes(), file


def test_operations_are_counted_as_trainer_counts_them(tmp_path):
    student, old = models()
    trainer = builders.trainer(tmp_path, student, old)
    for rows in (builders.rows()[:1], builders.rows()):
        batch = builders.collate(rows)
        assert trainer.floating_point_ops(batch) == Trainer.floating_point_ops(trainer, batch) > 0
    assert trainer.floating_point_ops({}) == 0


@pytest.mark.parametrize("whose", [0, 1])
def test_a_model_split_over_several_devices_gets_whole_logits(whose, tmp_path):
    split = models()
    split[whose].get_base_model().hf_device_map = {"model": 0, "lm_head": 1}
    with pytest.raises(MuscleError, match="loss_chunk_size=3 cannot be used: a model is split over several GPUs"):
        builders.trainer(tmp_path, *split, loss_chunk_size=3)
    assert builders.trainer(tmp_path, *split)._step.head is None
    beside = models()
    beside[whose].get_base_model().hf_device_map = {"model": "cuda:0", "lm_head": "cpu"}
    assert builders.trainer(tmp_path, *beside)._step.head is not None
