"""Models that read texts with images are trained like any other, on rows with images and without."""

from __future__ import annotations

import builders
import pytest
import torch
from peft import LoraConfig, get_peft_model
from vision_models import FAMILIES, rows

ROWS = {"text": (), "one image a row": (1,), "none or two": (2, 0, 0)}
CASES = [
    pytest.param(name, images, same, marks=[] if images == "none or two" and not same else [pytest.mark.slow])
    for name in FAMILIES
    for images in ROWS
    for same in (False, True)
]


def with_lora(model, seed):
    torch.manual_seed(seed)
    layers = r".*language_model.*\.(q_proj|v_proj|in_proj_qkv|down_proj)"
    return get_peft_model(model, LoraConfig(r=4, target_modules=layers, init_lora_weights=False))


def half_right(table, family, model):
    """Every second answer as a model gives it, so that it is wrong here and right there."""
    says = builders.logits_without_trainer(model, family.collate(table)).argmax(-1).tolist()
    for row, answers in zip(table, says, strict=True):
        row["labels"] = [answers[i - 1] if i % 2 and label != -100 else label for i, label in enumerate(row["labels"])]
    return table


def figures(metrics):
    return {name: value for name, value in metrics.items() if builders.is_figure(name)}


def run(folder, name, images, same, **settings):
    """A trainer, its figures before and after three steps, and the adapter."""
    family = FAMILIES[name]
    model, old = with_lora(family.build(2), 20), with_lora(family.build(2 if same else 1), 10)
    table = half_right(rows(ROWS[images]), family, model)
    batch = family.collate(table)
    alone = builders.logits_without_trainer(old, batch)[:, :-1][batch["labels"][:, 1:] != -100]
    trainer = builders.trainer(
        folder, model, old, train_dataset=table, eval_dataset=table, data_collator=family.collate, max_steps=3,
        remove_unused_columns=False, compatibility_weight=0.6, per_device_train_batch_size=3, **settings,
    )  # fmt: skip
    assert (trainer.teachers["old"].model is trainer.student) is same
    found = torch.cat(list(trainer.logits_of_teacher("old", batch, trainer.trained_labels(batch))))
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    first = figures(trainer.evaluate())
    assert first["eval_kl_new"] == 0 < first["eval_share_old"] < 1
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return trainer, first, figures(trainer.evaluate()), weights


def assert_same_run(one, other):
    assert other[1] == pytest.approx(one[1], rel=1e-4)
    assert other[2] == pytest.approx(one[2], rel=1e-3)
    for name, weight in one[3].items():
        torch.testing.assert_close(other[3][name], weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("name", "images", "same"), CASES)
def test_a_run_in_chunks_is_the_run_on_whole_logits(name, images, same, tmp_path):
    plain = run(tmp_path / "1", name, images, same, loss_chunk_size=0)
    chunked = run(tmp_path / "2", name, images, same, loss_chunk_size=3)
    assert chunked[0]._passes.chunked is not None, "the head was not taken apart"
    assert_same_run(plain, chunked)


@pytest.mark.parametrize(("name", "images", "same"), [case for case in CASES if not case.values[-1]])
@pytest.mark.slow
def test_a_teacher_cache_changes_nothing(name, images, same, tmp_path):
    plain = run(tmp_path / "1", name, images, same)
    for again in (False, True):
        cached = run(tmp_path / "2", name, images, same, teacher_cache=str(tmp_path / "cache"))
        assert_same_run(plain, cached)
        held = len(cached[0]._passes.chunked.caches["old"])
        # Patches of all images in one row of numbers are not told apart in a batch.
        expected = {"text": {6}, "one image a row": {0} if "qwen" in name else {6}, "none or two": range(1, 6)}
        assert held in expected[images], again
